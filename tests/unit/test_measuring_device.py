"""Devices without any: PyTorch and NVML are played by objects that note what they are asked."""

import sys
from types import SimpleNamespace

import pytest

from sim.errors import InfeasibleError, InputError
from sim.measuring.device import CpuDevice, CudaDevice, NvmlSensor, open_device
from sim.measuring.power import metering
from sim.measuring.timing import Block


class NvmlError(Exception):
    """What NVML raises."""


def fake_nvml(**answers):
    def answer(name):
        def asked(handle, *_):
            assert handle == "GPU-abc"
            if name not in answers:
                raise NvmlError(name)
            return answers[name]

        return asked

    names = ("EnforcedPowerLimit", "TotalEnergyConsumption", "PowerUsage", "ClockInfo")
    return SimpleNamespace(
        NVMLError=NvmlError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTemperature=answer("Temperature"),
        **{f"nvmlDeviceGet{name}": answer(name) for name in names},
    )


class FakeCuda:
    """``torch.cuda`` as far as it is used; a call takes 2 ms."""

    def __init__(self):
        self.log = []
        self.replays = 0

    def is_available(self):
        return True

    def current_device(self):
        return 0

    def get_device_properties(self, _):
        return SimpleNamespace(
            name="Fake GPU",
            uuid="abc",
            total_memory=80e9,
            L2_cache_size=50_000_000,
            multi_processor_count=132,
        )

    def get_device_capability(self, _):
        return (9, 0)

    def mem_get_info(self, _):
        return 10_000, 80_000

    def memory_reserved(self, _):
        return 5_000

    def memory_allocated(self, _):
        return 2_000

    def current_stream(self):
        return FakeStream(self, "main")

    def Stream(self):  # noqa: N802 - PyTorch's name
        return FakeStream(self, "side")

    def stream(self, stream):
        return Within(self, f"on {stream.name}")

    def CUDAGraph(self):  # noqa: N802
        return FakeGraph(self)

    def graph(self, _):
        return Within(self, "capture")

    def Event(self, *, enable_timing):  # noqa: N802
        assert enable_timing
        return FakeEvent(self)


class FakeStream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class Within:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def __enter__(self):
        self.cuda.log.append(self.name)

    def __exit__(self, *_):
        self.cuda.log.append(f"end {self.name}")


class FakeGraph:
    def __init__(self, cuda):
        self.cuda = cuda

    def replay(self):
        self.cuda.replays += 1


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.at = cuda, None

    def record(self):
        self.at = self.cuda.replays

    def synchronize(self):
        self.cuda.log.append("waited")

    def elapsed_time(self, end):
        return 2.0 * (end.at - self.at)  # milliseconds


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    fake = FakeCuda()
    torch = SimpleNamespace(
        cuda=fake,
        device=lambda *parts: parts,
        version=SimpleNamespace(cuda="13.0"),
        __version__="2.13.0",
        get_num_threads=lambda: 2,
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    return fake


def test_without_pytorch_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'rackcast\[measure\]'"):
        open_device("cpu")


def test_without_a_gpu_cuda_is_infeasible(cuda, monkeypatch):
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    with pytest.raises(InfeasibleError, match="sees no CUDA device here"):
        open_device("cuda")
    assert isinstance(open_device(), CpuDevice)


@pytest.mark.usefixtures("cuda")
def test_a_gpu_is_taken_where_there_is_one():
    device = open_device()
    assert isinstance(device, CudaDevice)
    assert (device.name, device.cache_bytes) == ("Fake GPU", 50e6)
    assert device.dtypes == ("bfloat16", "float16", "fp8")
    # What PyTorch keeps and does not use counts as free: 10,000 + 5,000 - 2,000.
    assert device.free_bytes() == 13_000.0
    assert device.sensor is None


def test_fp8_is_left_out_where_the_chip_has_none(cuda, monkeypatch):
    monkeypatch.setattr(cuda, "get_device_capability", lambda _: (8, 0))
    assert "fp8" not in open_device().dtypes


def test_calls_are_warmed_on_a_side_stream_captured_once_and_replayed(cuda):
    made = []
    run = open_device().runner([lambda n=n: made.append(n) for n in range(4)])
    assert made == [0, 1, 2, 0, 1, 2, 3]
    assert cuda.log == [
        "side waits for main",
        "on side",
        "end on side",
        "main waits for side",
        "capture",
        "end capture",
    ]
    # Ten calls are three rounds of four, 2 ms each round.
    assert run(10) == Block(pytest.approx(0.006), 12)
    assert cuda.replays == 3
    assert len(made) == 7


@pytest.mark.usefixtures("cuda")
def test_calls_on_a_processor_go_on_where_they_stopped():
    made = []
    run = open_device("cpu").runner([lambda n=n: made.append(n) for n in range(3)])
    assert run(2).calls == 2
    assert run(2).calls == 2
    assert made == [0, 1, 2, 0]


def test_nvml_speaks_in_milli(monkeypatch):
    nvml = fake_nvml(
        EnforcedPowerLimit=700_000,
        TotalEnergyConsumption=5_000,
        PowerUsage=123_456,
        ClockInfo=1980,
        Temperature=41,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    sensor = NvmlSensor.of(SimpleNamespace(uuid="abc"))
    assert sensor is not None
    assert (sensor.limit_w, sensor.energy_j(), sensor.power_w()) == (700.0, 5.0, 123.456)
    assert sensor.described() == {
        "driver": "570.1",
        "power_limit_w": 700.0,
        "sm_clock_hz": 1.98e9,
        "memory_clock_hz": 1.98e9,
        "temperature_c": 41,
    }


def test_what_nvml_does_not_know_stays_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(PowerUsage=50_000))
    sensor = NvmlSensor.of(SimpleNamespace(uuid="abc"))
    assert sensor is not None
    assert sensor.energy_j() is None
    assert sensor.limit_w is None
    assert sensor.power_w() == 50.0


def test_a_power_that_nvml_does_not_know_is_not_zero(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    sensor = NvmlSensor.of(SimpleNamespace(uuid="abc"))
    assert sensor is not None
    assert sensor.power_w() is None
    with metering(sensor) as reading:
        pass
    assert reading.mean_w is None


def test_no_nvml_no_sensor(monkeypatch):
    def fail():
        raise NvmlError("no driver")

    nvml = fake_nvml()
    nvml.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert NvmlSensor.of(SimpleNamespace(uuid="abc")) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert NvmlSensor.of(SimpleNamespace(uuid="abc")) is None
