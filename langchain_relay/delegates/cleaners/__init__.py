"""What chat models add to a continuation they were asked for, and how it is taken out.

`Reply` puts four stages together, each fed a span piece by piece: the marker that the draft was
shown behind, a repeated draft, an opener, a code fence. Each looks at one character at a time, so
any chunking of a span gives the same text, and passes text on as soon as it is sure.

Losing a word of an answer is worse than showing an opener. So where a draft stops decides what
may be one: within a sentence no answer goes on with "Here is the continuation:"; behind one it may
go on with "Here is the rest of the story:"; behind a colon or an opening quotation mark with
anything. What only may be an opener is taken out if a repeated draft or a fence follows it.
"""

from langchain_relay.delegates.cleaners.echo import is_restart
from langchain_relay.delegates.cleaners.markers import marker
from langchain_relay.delegates.cleaners.reply import Reply, Stage
from langchain_relay.delegates.cleaners.scripts import is_cjk

__all__ = ["Reply", "Stage", "is_cjk", "is_restart", "marker"]
