"""The chat page: a few static files, read once, sent with a policy that lets them load nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Path -> file and media type.
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page/app.js": ("app.js", "text/javascript"),
    "/page/markdown.js": ("markdown.js", "text/javascript"),
    "/page/stream.js": ("stream.js", "text/javascript"),
    "/page/style.css": ("style.css", "text/css"),
}


def make_page_endpoint(path: str) -> Callable[[Request], Awaitable[Response]]:
    """Returns the endpoint for one of `PAGE_FILES`."""
    name, media_type = PAGE_FILES[path]
    content = files("millpond.serve.http").joinpath("page", name).read_bytes()
    headers = {
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return endpoint
