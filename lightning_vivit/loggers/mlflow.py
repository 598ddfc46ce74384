"""MLflow: scalars and figures. It has no histograms."""

from __future__ import annotations

import re
from itertools import islice

from lightning.pytorch.loggers import MLFlowLogger

from lightning_vivit.loggers.entry import LogEntry
from lightning_vivit.loggers.pictures import image
from lightning_vivit.loggers.writer import LogWriter

MAX_METRICS = 1000  # of one request, the server's limit


class MLFlowWriter(LogWriter):
    """Logs the scalars in requests of bounded size, and figures as images with a step.

    Figures need mlflow >= 2.11.
    """

    kind = "MLFlowLogger"
    logger: MLFlowLogger
    shows = ("figures",)

    def write(self, entry: LogEntry) -> None:
        """Write scalars and figures."""
        rest = iter(entry.scalars.items())
        while part := dict(islice(rest, MAX_METRICS)):
            self.logger.log_metrics(part, step=entry.step)
        for key, draw in entry.figures.items():
            name = re.sub("[^a-zA-Z0-9_/. -]+", "", self._with_prefix(key))  # as Lightning does
            self.logger.experiment.log_image(
                self.logger.run_id, image(draw), key=name, step=entry.step
            )
        self.logger.save()
