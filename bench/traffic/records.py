"""What passes between the parts of serving: a request as traffic plans it, and what became of it.

Times are seconds on one clock since the start of the measurement, so that who plans, who sends and who judges can
stand in different processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OK = "ok"
CUT = "cut"  # still running at the end


@dataclass(frozen=True, slots=True)
class Planned:
    """One request before it is sent.

    Its prompt is the first `shared_tokens` tokens of the prompt of request `prefix_of`, and new ones after them. It is
    sent at `arrival_s`; or, where it is a later turn of a session, `think_s` after request `after` has ended.
    """

    number: int  # from 0, in the order planned; other fields name requests by it
    input_tokens: int  # of the prompt, shared ones included
    output_tokens: int
    arrival_s: float | None = None  # None: a closed loop, or a later turn
    session: int = 0
    prefix_of: int | None = None
    shared_tokens: int = 0
    after: int | None = None
    think_s: float = 0.0
    traffic: str = ""  # its class, in a mix


@dataclass(slots=True)
class Record:
    """One request after it has ended, however it ended.

    `status`: ok, or what went wrong in one word (timeout, refused, http_429, malformed, closed, cut: still running at
    the end). `token_s` are the arrival times of its output tokens as far as the observer could tell them apart: a
    server may send several in one chunk, so their number is not the token count.
    """

    number: int
    scheduled_s: float
    sent_s: float
    input_tokens: int  # as the server counted them; as sent where it does not say
    planned_output_tokens: int
    output_tokens: int = 0  # as the server counted them
    cached_tokens: int | None = None  # of the input, found in the prefix cache; None: not told
    first_token_s: float | None = None
    end_s: float | None = None
    status: str = OK
    reason: str = ""
    token_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from when the request was due, so that a late client hides nothing."""
        return None if self.first_token_s is None else self.first_token_s - self.scheduled_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first (vLLM's definition); None below two tokens."""
        if self.first_token_s is None or self.end_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        """From due to the last token."""
        return None if self.end_s is None else self.end_s - self.scheduled_s
