"""The cable: messages to browsers, over websockets and event streams."""

from .cable import Cable as Cable
from .cable import say_goodbye as say_goodbye
from .cable import stop_all as stop_all
from .channels import Channel as Channel
from .limits import connections as connections
from .store import Presence as Presence
