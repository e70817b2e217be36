"""Open-ended chat: single and multi-turn conversations, sent unchanged, with system prompts."""

from toa_trl.tasks.base import Task


class Alignment(Task):
    """Send the prompt unchanged; the whole answer is the response."""

    name = "alignment"
