"""Settings of an OpenAI-compatible endpoint, which stage 02a and the judge of stage 05 ask."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from vlm.errors import Unusable


@dataclass
class EndpointRuntime:
    """Where and how fast the endpoint is asked, and at what cost: what a resumed run may change."""

    base_url: str | None = None  # of an OpenAI-compatible endpoint, like http://localhost:8000/v1
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key; a local endpoint needs none
    max_tokens_name: str = "max_tokens"  # the field of that limit; newer models want max_completion_tokens
    stream: bool = False  # ask for the answer token by token
    workers: int = 8  # requests at once
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None  # of prompts and answers, each answer counted as max_tokens
    timeout: float = 120.0  # seconds for one request
    tries: int = 6  # of one request, when the endpoint fails
    backoff: float = 1.0  # seconds before the second try; doubled for each further one, with jitter
    max_backoff: float = 60.0  # seconds
    input_price: float = 0.0  # for a million tokens of prompts, in the currency of max_cost
    output_price: float = 0.0  # for a million tokens of answers
    max_cost: float | None = None  # of all requests together: none is sent that could go beyond it
    max_request_cost: float | None = None  # a request that could cost more is not sent
    cache: str | None = None  # folder of answers that runs share; null: <runs>/endpoint_cache

    def __post_init__(self) -> None:
        limits = (self.requests_per_minute, self.tokens_per_minute, self.timeout, self.backoff, self.max_backoff)
        if any(limit is not None and limit <= 0 for limit in limits) or self.workers < 1 or self.tries < 1:
            raise Unusable("an endpoint's limits and times are more than 0, workers and tries at least 1")
        if min(self.input_price, self.output_price) < 0:
            raise Unusable("an endpoint's prices are not negative")
        if max(self.max_cost or 0, self.max_request_cost or 0) > 0 and not (self.input_price or self.output_price):
            raise Unusable("a cap on an endpoint's cost needs input_price= and output_price=")
        if self.base_url is not None and ("@" in urlsplit(self.base_url).netloc or urlsplit(self.base_url).query):
            raise Unusable("an endpoint's base_url holds a secret: give the key in the environment")
