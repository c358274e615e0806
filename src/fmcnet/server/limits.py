"""How much one caller, and all together, may ask of the service."""

from __future__ import annotations

from dataclasses import dataclass

from fmcnet.errors import FmcnetError


@dataclass(frozen=True)
class Limits:
    """Every bound of the service.

    Its memory stays below about `requests * body_bytes * 2` and the images that are being decoded.

    Attributes:
        head_seconds: in which the head of a request must arrive.
        answer_seconds: in which a caller must read an answer.
        peer_connections: open at once from one address.
        body_bytes: most bytes of the body of one request.
        body_seconds: in which the body of a request must arrive.
        images: most images of one request.
        pixels: of one image, read from its header before it is decoded; four times as many of one request.
        requests: at work at once, of all callers; one caller has its `share`. Further ones get 503.
        decoders: processes that decode large images; one more decodes crops.
        decode_seconds: of one image.
        queue: images that may wait for the network. Further ones get 503.
        batch: images that the network sees at once.
        wait: seconds that the first image of a batch waits for others.
        top: hits of one search.
        stop_seconds: in which a stop ends the process; a quarter of them is for closing the gallery.

    Raises:
        FmcnetError: for a bound that is not positive.
    """

    head_seconds: float = 10.0
    answer_seconds: float = 20.0
    peer_connections: int = 64
    body_bytes: int = 16 * 2**20
    body_seconds: float = 20.0
    images: int = 64
    pixels: int = 25_000_000
    requests: int = 16
    decoders: int = 1
    decode_seconds: float = 3.0
    queue: int = 512
    batch: int = 32
    wait: float = 0.005
    top: int = 500
    stop_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise FmcnetError(f"the service's limit {name}={value} must be above 0")
        if self.queue < self.images:
            raise FmcnetError(
                f"queue={self.queue} must be at least images={self.images}: else a full request never fits"
            )

    def share(self, others: bool) -> int:
        """Requests of one caller at once: half while others are at work, else all but one."""
        return (self.requests + 1) // 2 if others else max(1, self.requests - 1)
