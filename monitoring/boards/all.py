"""All dashboards."""

from monitoring.boards.applications import APPLICATIONS
from monitoring.boards.cluster import CLUSTER
from monitoring.boards.gpus import GPUS
from monitoring.boards.overview import OVERVIEW
from monitoring.boards.queue import QUEUE
from monitoring.boards.storage import STORAGE
from monitoring.boards.way import WAY

DASHBOARDS = (OVERVIEW, QUEUE, WAY, GPUS, APPLICATIONS, STORAGE, CLUSTER)
