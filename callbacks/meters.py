"""Where kilowatt hours come from: codecarbon's measurement, or power x hours."""

from __future__ import annotations

import logging
from typing import Any, Literal, Protocol

Backend = Literal["auto", "codecarbon", "watts"]


class Meter(Protocol):
    """Energy since it was opened."""

    source: str

    def read(self, hours: float) -> float | None:
        """kWh in these hours; None where it is not known."""
        ...

    def close(self, hours: float) -> float | None:
        """The same at the end; nothing is read afterwards."""
        ...


class WattsMeter:
    """Power x hours, as in Llama 2's Table 2."""

    source = "power x hours"

    def __init__(self, watts: float) -> None:
        self.watts = watts

    def read(self, hours: float) -> float | None:
        return self.watts * hours / 1000

    def close(self, hours: float) -> float | None:
        return self.read(hours)


class CodecarbonMeter:
    """codecarbon's measurement of the whole machine, offline.

    It is asked for 1 kg of CO2e per kWh and a PUE of 1, so that the kilograms it returns are kWh: the public way to
    its energy, and no country, grid or data centre of its own enters. `allow_multiple_runs` keeps it from replacing
    the handlers of SIGTERM and SIGINT.
    """

    source = "codecarbon"

    def __init__(self) -> None:
        codecarbon = _import_codecarbon()
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self._tracker: Any = codecarbon.OfflineEmissionsTracker(
            country_iso_code="USA",
            force_carbon_intensity_g_co2e_kwh=1000.0,
            pue=1.0,
            output_methods=[],
            allow_multiple_runs=True,
            tracking_mode="machine",
            log_level="error",
        )
        self._tracker.start()

    def read(self, hours: float) -> float | None:
        return self._tracker.flush()

    def close(self, hours: float) -> float | None:
        return self._tracker.stop()


def open_meter(backend: Backend, watts: float) -> Meter:
    """The meter of a backend; "auto" measures where codecarbon is installed."""
    if backend == "watts":
        return WattsMeter(watts)
    try:
        return CodecarbonMeter()
    except ImportError:
        if backend == "codecarbon":
            raise
        return WattsMeter(watts)


def _import_codecarbon() -> Any:
    try:
        import codecarbon
    except ImportError as error:
        raise ImportError(
            f"codecarbon cannot be imported ({error}): pip install 'llama2-pl[carbon]', or take backend=\"watts\""
        ) from error
    return codecarbon
