"""Distributed servables: a model cut into the ranks of a rank table.

MindSpore's ranks speak to each other inside their graphs, which only MindSpore can run. What works here is a model of
our engine, which takes all the machine's cores by itself, and a servable whose stages name several models. So the calls
check what they are given, as the original does, and then say which of these to use.
"""

from __future__ import annotations

from collections.abc import Sequence

from millpond.compat.mindspore_serving.server.checks import check_bool, check_int, check_ints, check_str
from millpond.compat.mindspore_serving.server.distributed.rank_table import RankTable, read_rank_table
from millpond.compat.mindspore_serving.server.register.model import Model
from millpond.compat.mindspore_serving.server.register.recording import DeclaredModel, current
from millpond.compat.mindspore_serving.server.start_config import ServableStartConfig

__all__ = ["DistributedStartConfig", "declare_servable", "start_servable", "startup_agents"]

_KEY = "distributed model"


class DistributedStartConfig:
    """What `start_servable` was asked to start.

    Args:
        servable_directory: Holds a folder of the servable's name.
        servable_name: The servable's name.
        rank_table_json_file: Which device has which rank.
        version_number: The version.
        distributed_address: Where agents register.
        wait_agents_time_in_seconds: 0 waits without end.

    Raises:
        RuntimeError: An argument is wrong.
    """

    def __init__(
        self,
        servable_directory: str,
        servable_name: str,
        rank_table_json_file: str,
        version_number: int = 1,
        distributed_address: str = "0.0.0.0:6200",
        *,
        wait_agents_time_in_seconds: int = 0,
    ) -> None:
        self.local = ServableStartConfig(servable_directory, servable_name, None, check_int("v", version_number, 1))
        self.distributed_address = check_str("distributed_address", distributed_address)
        self.wait_agents_time_in_seconds = check_int("wait_agents_time_in_seconds", wait_agents_time_in_seconds, 0)
        self.rank_table: RankTable = read_rank_table(check_str("rank_table_json_file", rank_table_json_file))


def as_local(config: DistributedStartConfig) -> ServableStartConfig:
    """Returns the configuration without the ranks: only a table with one rank is the same without them.

    Raises:
        RuntimeError: There are several ranks.
    """
    num_ranks = len(config.rank_table.ranks)
    if num_ranks > 1:
        raise RuntimeError(
            f"Servable {config.local.servable_name} is distributed over {num_ranks} ranks whose graphs exchange data "
            f"with MindSpore's collectives; they cannot be run here. Serve a language model with `millpond serve "
            f"MODEL`, which uses the whole machine by itself, or export the whole network as one ONNX file, or its "
            f"pipeline stages as one file each, and chain them with declare_model and add_stage"
        )
    return config.local


def start_servable(
    servable_directory: str,
    servable_name: str,
    rank_table_json_file: str,
    version_number: int = 1,
    distributed_address: str = "0.0.0.0:6200",
    *,
    wait_agents_time_in_seconds: int = 0,
) -> None:
    """Starts a servable over the ranks of a table.

    Raises:
        RuntimeError: An argument is wrong, or there are several ranks.
    """
    from millpond.compat.mindspore_serving.server import start_servables

    start_servables(
        DistributedStartConfig(
            servable_directory,
            servable_name,
            rank_table_json_file,
            version_number,
            distributed_address,
            wait_agents_time_in_seconds=wait_agents_time_in_seconds,
        )
    )


def startup_agents(
    distributed_address: str,
    model_files: Sequence[str],
    group_config_files: Sequence[str] | None = None,
    *,
    agent_start_port: int = 7000,
    agent_ip: str | None = None,
    rank_start: int | None = None,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
) -> None:
    """Starts the agents of this machine's ranks.

    Raises:
        RuntimeError: Always, after the arguments were checked: agents run MindSpore's graphs.
    """
    check_str("distributed_address", distributed_address)
    check_int("agent_start_port", agent_start_port, 1, 65535)
    if agent_ip is not None:
        check_str("agent_ip", agent_ip)
    if rank_start is not None:
        check_int("rank_start", rank_start, 0)
    raise RuntimeError(
        f"The {len(model_files)} model files of these agents are ranks of a MindSpore graph, which only MindSpore can "
        f"run; see server.distributed.start_servable for what to use in their place"
    )


def declare_servable(
    rank_size: int,
    stage_size: int,
    with_batch_dim: bool = True,
    without_batch_dim_inputs: int | Sequence[int] | None = None,
    enable_pipeline_infer: bool = False,
) -> Model:
    """Declares the distributed model of a servable.

    Raises:
        RuntimeError: An argument is wrong, or there is a model already.
    """
    check_int("rank_size", rank_size, 1)
    check_int("stage_size", stage_size, 1)
    check_bool("with_batch_dim", with_batch_dim)
    check_bool("enable_pipeline_infer", enable_pipeline_infer)
    without = () if without_batch_dim_inputs is None else check_ints(
        "without_batch_dim_inputs", without_batch_dim_inputs, 0
    )
    recording = current()
    recording.declare(
        DeclaredModel(
            _KEY,
            (),
            "distributed",
            with_batch_dim,
            without,
            rank_size=rank_size,
            stage_size=stage_size,
            enable_pipeline_infer=enable_pipeline_infer,
        )
    )
    return Model(_KEY, recording=recording)
