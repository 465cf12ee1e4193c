"""Device contexts of `declare_model`: checked as the original does, so that a servable's file loads unchanged.

They tune devices that are not here, so nothing reads them but `Context.thread_num`.
"""

from __future__ import annotations

from collections.abc import Mapping

from millpond.compat.mindspore_serving.server.checks import check_bool, check_int, check_ints, check_str

_PRECISIONS = ("origin", "fp16")
_ASCEND_CHOICES = {
    "input_format": ("ND", "NCHW", "NHWC", "CHWN", "NC1HWC0", "NHWC1C0"),
    "output_type": ("FP32", "FP16", "UINT8"),
    "precision_mode": ("force_fp16", "allow_fp32_to_fp16", "must_keep_origin_dtype", "allow_mix_precision"),
    "op_select_impl_mode": ("high_performance", "high_precision"),
    "buffer_optimize_mode": ("l1_optimize", "l2_optimize", "off_optimize", "l1_and_l2_optimize"),
}
_ASCEND_TEXTS = ("insert_op_cfg_path", "input_shape", "fusion_switch_config_path")


class DeviceInfoContext:
    """What the device infos share.

    Attributes:
        device_type: "cpu", "gpu" or "ascend".
        context_map: The options that were given.
    """

    device_type = ""
    _name = ""
    _choices: Mapping[str, tuple[str, ...]] = {}
    _texts: tuple[str, ...] = ()
    _unsupported = "option"

    def __init__(self, **options: object) -> None:
        self.context_map = {"device_type": self.device_type}
        for key, value in options.items():
            if key not in self._choices and key not in self._texts:
                what = f"unsupported {self._unsupported} {key}"
                raise RuntimeError(f"Set {self._name.lower()} device info failed, {what}")
            text = check_str(key, value)
            allowed = self._choices.get(key)
            if allowed is not None and text not in allowed:
                shown = ", ".join(repr(choice) for choice in allowed)
                raise RuntimeError(f"{self._name} device info '{key}' can only be {shown}. given '{text}'")
            self.context_map[key] = text


class CPUDeviceInfo(DeviceInfoContext):
    """Options of a CPU: `precision_mode`."""

    device_type = "cpu"
    _name = "Cpu"
    _choices: Mapping[str, tuple[str, ...]] = {"precision_mode": _PRECISIONS}


class GPUDeviceInfo(DeviceInfoContext):
    """Options of a GPU: `precision_mode`."""

    device_type = "gpu"
    _name = "Gpu"
    _choices: Mapping[str, tuple[str, ...]] = {"precision_mode": _PRECISIONS}


class AscendDeviceInfo(DeviceInfoContext):
    """Options of an Ascend device."""

    device_type = "ascend"
    _name = "Ascend"
    _choices: Mapping[str, tuple[str, ...]] = _ASCEND_CHOICES
    _texts = _ASCEND_TEXTS
    _unsupported = "parameter"


class Context:
    """How a model runs: `thread_num`, `thread_affinity_core_list`, `enable_parallel`, and options by device."""

    def __init__(self, **options: object) -> None:
        self.thread_num = 0
        self.thread_affinity_core_list: tuple[int, ...] = ()
        self.enable_parallel = False
        self.device_infos: list[DeviceInfoContext] = []
        for key, value in options.items():
            if key == "thread_num":
                self.thread_num = check_int(key, value, 1)
            elif key == "thread_affinity_core_list":
                self.thread_affinity_core_list = check_ints(key, value, 0)
            elif key == "enable_parallel":
                self.enable_parallel = check_bool(key, value)
            else:
                raise RuntimeError("Set context failed, unsupported option " + key)

    def append_device_info(self, device_info: DeviceInfoContext) -> None:
        """Adds one device's options; a kind of device at most once."""
        if not isinstance(device_info, DeviceInfoContext):
            raise RuntimeError(
                f"Parameter 'device_info' should instance of CPUDeviceInfo, GPUDeviceInfo, or AscendDeviceInfo, but "
                f"actually {type(device_info)}"
            )
        if any(known.device_type == device_info.device_type for known in self.device_infos):
            raise RuntimeError(f"Device info of type {device_info.device_type} has already been appended")
        self.device_infos.append(device_info)


class _Options:
    def __init__(self, device_info: DeviceInfoContext) -> None:
        self.context = Context()
        self.context.append_device_info(device_info)


class AclOptions(_Options):
    """The older form of `AscendDeviceInfo`."""

    def __init__(self, **options: object) -> None:
        super().__init__(AscendDeviceInfo(**options))


class GpuOptions(_Options):
    """The older form of `GPUDeviceInfo`."""

    def __init__(self, **options: object) -> None:
        super().__init__(GPUDeviceInfo(**options))
