"""The cable: messages to browsers, over websockets and event streams."""

from .cable import Cable as Cable
from .cable import stop_all as stop_all
from .channels import Channel as Channel
from .store import Presence as Presence
