"""What the protocol has beside and no model here can do: refused in its own shape, and not in the schema."""

from fastapi import APIRouter

from serve_app.api.auth import Maker, Reader
from serve_app.api.errors import NotSupported
from serve_app.api.streaming import Party, streams

router = APIRouter(prefix="/v1/videos", include_in_schema=False)

#: Bytes of a body, which is a video as a rule and never looked at; and requests that bring one at a time.
_MAX_BYTES = 2 * 1024**3
_REFUSED = Party(name="refused", most=16)


def _unread(path: str) -> Party:
    return _REFUSED


@router.post("/{video_id}/remix")
@streams(party=_unread, max_bytes=_MAX_BYTES)
async def remix_video(video_id: str, _: Maker) -> None:
    """Made of another video."""
    raise NotSupported("Videos are not remixed here. Create one with another prompt instead.")


@router.post("/edits")
@router.post("/extensions")
@router.post("/characters")
@streams(party=_unread, max_bytes=_MAX_BYTES)
async def edit_video(_: Maker) -> None:
    """Made of a video that comes along."""
    raise NotSupported("Videos are not edited or extended here, and there are no characters. Create one instead.")


@router.get("/characters/{character_id}")
async def get_character(character_id: str, _: Reader) -> None:
    """Of a character that was made."""
    raise NotSupported("There are no characters here.")
