"""The HTTP connection to the receiver of traces: its answers are not read, since one could be endless."""

from typing import Any

import requests


class UnreadAnswers(requests.Session):
    """Sends requests, and closes the connection once the head of the answer is known: the exporter needs no more."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send *request*; the answer has a status and headers, and no body.

        Raises:
            TooManyRedirects: the answer is a redirect, none of which is followed.
        """
        response = super().send(request, **{**kwargs, "stream": True})
        response.close()
        if response.is_redirect:
            raise requests.TooManyRedirects("the exporter would take a redirect for success")
        return response

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return that there is none: the library would read the body of a redirect before it follows it, or not."""
