"""A tour of the API with httpx: `python example_client.py [--base-url URL]`.

If the service requires a key or a token, set FAST_EMBEDDING_API_KEY to it.
"""

import argparse
import base64
import ipaddress
import math
import operator
import os
import sys
import time
from array import array
from collections.abc import Sequence
from typing import Any

import httpx

RETRY_STATUSES = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}
MAX_TRIES = 5
MAX_PAUSE_S = 30.0
QUESTION = "How do I reset my password?"
ANSWERS = (
    "Open the settings, choose Security, and ask for a new password.",
    "Our offices are closed on public holidays.",
    "If you cannot sign in, we send you a link with which you set a new one.",
)


class ProblemError(Exception):
    """The service rejected a request; the problem details (RFC 9457) say why."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(details["detail"])
        self.details = details


def ask(
    client: httpx.Client, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Send one request. After a 429 or 503, retry when `Retry-After` says so.

    Raises:
        ProblemError: the service rejected the request, or stayed busy.
    """
    for tries_left in reversed(range(MAX_TRIES)):
        response = client.request(method, path, json=body, headers=headers)
        pause_s = float(response.headers.get("Retry-After", math.inf))
        if response.status_code in RETRY_STATUSES and tries_left and pause_s <= MAX_PAUSE_S:
            print(f"  {response.status_code}; retrying in {pause_s:g} s")
            time.sleep(pause_s)
            continue
        break
    if response.headers.get("Content-Type") == "application/problem+json":
        raise ProblemError(response.json())
    answer: dict[str, Any] = response.json()
    return answer


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine similarity of two vectors: 1 means the same direction. Without numpy, so httpx is enough."""
    product: float = sum(map(operator.mul, one, other))
    return product / math.hypot(*one) / math.hypot(*other)


def show_service(client: httpx.Client) -> None:
    health = ask(client, "GET", "/health")
    print(f"  {health['status']}, up for {health['uptime_seconds']:.0f} s")
    models = ask(client, "GET", "/models")
    print(f"  in memory: {', '.join(models['cached_models'])}")
    print(f"  available: {len(models['available_models'])} models, such as")
    for model in models["available_models"][:4]:
        print(f"    {model['name']:45} {model['dimension']:5} dimensions  {model['source']}")


def show_single(client: httpx.Client) -> None:
    answer = ask(client, "POST", "/embed", {"text": QUESTION})
    start = ", ".join(f"{value:.4f}" for value in answer["embedding"][:4])
    print(f"  {QUESTION!r}")
    print(f"  {answer['dimension']} numbers: [{start}, ...]")
    print(f"  {answer['tokens']} tokens, truncated: {answer['truncated']}, {answer['processing_time_ms']:.1f} ms")


def show_batch(client: httpx.Client) -> None:
    answer = ask(client, "POST", "/embed/batch", {"texts": [QUESTION, *ANSWERS]})
    print(f"  {answer['count']} texts, {sum(answer['tokens'])} tokens, {answer['processing_time_ms']:.1f} ms")
    question, *others = answer["embeddings"]
    print(f"  most similar to {QUESTION!r}:")
    ranked = sorted(zip((cosine(question, other) for other in others), ANSWERS, strict=True), reverse=True)
    for similarity, text in ranked:
        print(f"    {similarity:6.3f}  {text}")


def show_long_text(client: httpx.Client) -> None:
    text = " ".join(ANSWERS * 10)
    for options in ({}, {"long_text": "mean"}):
        answer = ask(client, "POST", "/embed", {"text": text, "input_type": "document", **options})
        print(f"  {options or 'no options'}: {answer['tokens']} tokens, truncated: {answer['truncated']}")
    answer = ask(client, "POST", "/embed", {"text": text, "input_type": "document", "long_text": "chunks"})
    for chunk in answer["chunks"]:
        print(f"  one vector for characters {chunk['start']} to {chunk['end']}, {chunk['tokens']} tokens")


def show_small_vectors(client: httpx.Client) -> None:
    exact = ask(client, "POST", "/embed", {"text": QUESTION, "input_type": "query"})["embedding"]
    body = {"text": QUESTION, "input_type": "query", "dtype": "int8", "encoding": "base64"}
    stored = array("b", base64.b64decode(ask(client, "POST", "/embed", body)["embedding"]))
    print(f"  int8: {len(stored)} bytes instead of {4 * len(exact)}, cosine {cosine(stored, exact):.4f}")


def show_guard(client: httpx.Client) -> None:
    """Store the fingerprint with an index, and send it with each request: only the same model answers."""
    model = ask(client, "POST", "/embed", {"text": QUESTION})["model_name"]
    fingerprint = ask(client, "GET", f"/models/{model}")["stamp"]["fingerprint"]
    for required in (fingerprint, "0123456789abcdef"):
        try:
            ask(client, "POST", "/embed", {"text": QUESTION}, {"If-Model-Fingerprint": required})
        except ProblemError as error:
            print(f"  {required}: {error.details['status']} {error.details['code']}")
        else:
            print(f"  {required}: 200")


def show_problem(client: httpx.Client) -> None:
    for body in ({"texts": ["fine", "   "]}, {"texts": ["fine"], "model_name": "bge-small"}):
        try:
            ask(client, "POST", "/embed/batch", body)
        except ProblemError as error:
            details = error.details
            place = f" ({details['field']}[{details['index']}])" if "index" in details else ""
            print(f"  {details['status']} {details['code']}{place}: {details['detail']}")


def show_metrics(client: httpx.Client) -> None:
    try:
        metrics = ask(client, "GET", "/metrics")
    except ProblemError as error:
        print(f"  {error}")
        return
    print(f"  {metrics['total_requests']} requests and {metrics['total_embeddings']} vectors so far")
    for endpoint, stats in sorted(metrics["endpoints"].items()):
        latency = stats["latency_ms"]
        times = f", p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms" if latency else ""  # none was served
        print(f"    {endpoint:30} {stats['requests']:6} requests{times}")


TOUR = {
    "The service": show_service,
    "One text": show_single,
    "Several texts, and their similarity": show_batch,
    "A text longer than the model's input": show_long_text,
    "Vectors in a quarter of the space": show_small_vectors,
    "Only vectors of the model that an index was built with": show_guard,
    "What an error looks like": show_problem,
    "Metrics": show_metrics,
}


def is_local(url: str) -> bool:
    """Return whether *url* is on this machine. Proxies of the environment cannot reach such an address."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> int:
    parser = argparse.ArgumentParser(description="A tour of the Fast Embedding API.")
    parser.add_argument("--base-url", default="http://localhost:8000", help="URL or host:port; default: %(default)s")
    base_url = parser.parse_args().base_url
    if "://" not in base_url:
        base_url = f"http://{base_url}"
    key = os.environ.get("FAST_EMBEDDING_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        uses_proxies = not is_local(base_url)
        with httpx.Client(base_url=base_url, headers=headers, timeout=60, trust_env=uses_proxies) as client:
            for title, show in TOUR.items():
                print(title)
                show(client)
                print()
    except ProblemError as error:
        print(f"The service rejected a request: {error}", file=sys.stderr)
        return 1
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:  # the last two: another program answered
        print(
            f"No service answers at {base_url} ({type(error).__name__}). Start it with ./run.sh, or set --base-url.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
