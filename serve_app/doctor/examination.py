"""All checks, in the order of the report."""

from dataclasses import replace

from serve_app.doctor.checks.cluster import CHILD_S as CLUSTER_S
from serve_app.doctor.checks.cluster import check_cluster
from serve_app.doctor.checks.database import check_database
from serve_app.doctor.checks.folders import (
    check_all_ports,
    check_data_folder,
    check_exposed,
    check_temporary_folder,
)
from serve_app.doctor.checks.gpu import CHILD_S as GPU_S
from serve_app.doctor.checks.gpu import check_gpu
from serve_app.doctor.checks.machine import (
    CODEC_S,
    check_limit_of_files,
    check_memory,
    check_packages,
    check_processors,
    check_python,
    check_shared_memory,
    check_video_encoder,
)
from serve_app.doctor.checks.model import DEEP_LIMIT_S, check_loras, check_model, check_proteins
from serve_app.doctor.checks.server import check_applications, check_server
from serve_app.doctor.checks.store import check_store
from serve_app.doctor.finding import Check

# A check that asks a child ends it itself; what it tells then must still be heard.
SPARE_S = 10.0
DISK = "the disk that it lies on does not answer: see `dmesg`, and mounts of the network (`mount | grep nfs`)"

CHECKS = (
    Check("python", check_python),
    Check("packages", check_packages),
    Check("exposure", check_exposed, hung="the name in http_options.host is looked up for ever: write an address"),
    Check("open_files", check_limit_of_files),
    Check("processors", check_processors),
    Check("memory", check_memory, limit_s=30),
    Check("shared_memory", check_shared_memory),
    Check("data_folder", check_data_folder, hung=DISK),
    Check("disk_temporary", check_temporary_folder, hung=DISK),
    Check("ports", check_all_ports),
    Check("gpus", check_gpu, limit_s=GPU_S + SPARE_S),
    Check("video_encoder", check_video_encoder, limit_s=CODEC_S + SPARE_S),
    Check("model", check_model, limit_s=90, hung=DISK),
    Check("loras", check_loras, limit_s=60, hung=DISK),
    Check("proteins", check_proteins, limit_s=90, hung=DISK),
    Check("store", check_store, limit_s=60, hung="the store takes requests and does not answer: see its process, disk"),
    Check("database", check_database, limit_s=30, hung="it takes the connection and does not answer: see its process"),
    Check("server", check_server, limit_s=30),
    Check("applications", check_applications),
    Check("cluster", check_cluster, limit_s=CLUSTER_S + SPARE_S),
)


def checks(deep: bool) -> tuple[Check, ...]:
    """deep: reading all bytes of a model may take hours."""
    return tuple(
        replace(check, limit_s=DEEP_LIMIT_S) if deep and check.name in ("model", "loras") else check for check in CHECKS
    )
