"""Runs `TritonPythonModel` files unchanged: `initialize`, `execute`, `finalize`, decoupled or not, async or not.

Arguments from `backends.python`: `folder`, `version`, `file`, `name`, `instance`, `decoupled`, `outputs` (names),
`reshapes` and `initialize` (what the model's `initialize` gets).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from millpond.compat import triton_python_backend_utils as api
from millpond.serve.servables.errors import ServableError
from millpond.serve.workers.execution import Execution
from millpond.serve.workers.host import Host
from millpond.serve.workers.reshapes import Reshapes
from millpond.serve.workers.runners.python_source import PythonSource
from millpond.serve.workers.wire import ErrorWire


def load(host: Host, arguments: dict[str, Any]) -> PythonModel:
    """Imports the model and initializes it.

    Raises:
        ServableError: The reason why it is not available, with the lines of the model's code it comes from.
    """
    source = PythonSource(Path(arguments["folder"]), arguments["version"], arguments["file"], arguments["name"])
    if arguments["reshapes"] is not None:
        host.reshapes = Reshapes(arguments["reshapes"])
    api.install()
    api.CONNECTION.connect(host, source.version_folder)
    module = source.load()
    if not hasattr(module, "TritonPythonModel"):
        raise ServableError("internal", f"'{arguments['file']}' has no class TritonPythonModel.")
    try:
        model = module.TritonPythonModel()
        if hasattr(model, "initialize"):
            model.initialize(arguments["initialize"])
    except (Exception, SystemExit) as error:
        raise ServableError("internal", source.describe(error)) from error
    if not callable(getattr(model, "execute", None)):
        raise ServableError("internal", f"Python model '{arguments['name']}' does not implement `execute` method.")
    return PythonModel(model, source, arguments)


class PythonModel:
    """A `TritonPythonModel` that was initialized."""

    def __init__(self, model: Any, source: PythonSource, arguments: dict[str, Any]) -> None:
        self._model = model
        self._source = source
        self._instance: str = arguments["instance"]
        self._is_decoupled: bool = arguments["decoupled"]
        self._outputs: list[str] = arguments["outputs"]
        self._loop: asyncio.AbstractEventLoop | None = None

    def info(self) -> dict[str, Any]:
        """Returns nothing: the configuration says it all."""
        return {}

    def execute(self, execution: Execution) -> None:
        """Runs `execute` on a batch; a decoupled model may answer later."""
        incoming, is_decoupled = api.InferenceRequest.incoming, self._is_decoupled
        requests = []
        for index in range(len(execution.requests)):  # a comprehension would be one more call
            requests.append(incoming(execution, index, self._outputs, is_decoupled=is_decoupled))
        try:
            if is_decoupled:
                self._run_decoupled(execution, requests)
            else:
                self._run(execution, requests)
        except ConnectionError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        del requests  # what they hold of shared memory goes back with the message that `finish` sends
        execution.finish()

    def close(self) -> None:
        """Runs `finalize`; what it raises is only logged."""
        if hasattr(self._model, "finalize"):
            try:
                self._model.finalize()
            except (Exception, SystemExit) as error:
                api.Logger.log_error(f"finalize failed: {self._source.describe(error)}")

    def _run(self, execution: Execution, requests: list[api.InferenceRequest]) -> None:
        responses = self._model.execute(requests)
        if not isinstance(responses, list) and inspect.iscoroutine(responses):
            responses = asyncio.run(responses)
        if responses is None and not any(map(execution.is_open, range(len(requests)))):
            return  # all were answered by their senders
        if not isinstance(responses, list):
            raise api.TritonModelException(f"Expected a list in the execute return, found type '{type(responses)}'.")
        if len(responses) != len(requests):
            raise api.TritonModelException(
                "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
                f"InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) size is:{len(responses)}\n"
            )
        for index, response in enumerate(responses):
            if response is None and not execution.is_open(index):
                continue
            if not isinstance(response, api.InferenceResponse):
                raise api.TritonModelException(
                    "Expected an 'InferenceResponse' object in the execute function return list, found type "
                    f"'{type(response)}'."
                )
        for index, response in enumerate(responses):
            if response is not None:
                response.put(execution, index, final=True)

    def _run_decoupled(self, execution: Execution, requests: list[api.InferenceRequest]) -> None:
        returned = self._model.execute(requests)
        if inspect.iscoroutine(returned):
            asyncio.run_coroutine_threadsafe(self._run_later(execution, returned), self._background_loop())
        elif returned is not None:
            raise api.TritonModelException(
                f"Python model '{self._instance}' is using the decoupled mode and the execute function must "
                "return None."
            )

    async def _run_later(self, execution: Execution, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except (Exception, SystemExit) as error:
            failure = self._failure(error)
            api.Logger.log_error(failure.message)
            execution.fail(ErrorWire(failure.code, failure.message))

    def _background_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="model-loop", daemon=True).start()
        return self._loop

    def _failure(self, error: BaseException) -> ServableError:
        described = self._source.describe(error)
        if isinstance(error, api.TritonModelException):
            described = str(error) if "\nAt:\n" not in described else described
        text = f"Failed to process the request(s) for model '{self._instance}', message: {described}"
        return ServableError("internal", text)
