"""What the monitors have in common: a callback that looks at the parameters before due steps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import Unpack

from lightning_vivit.callbacks.before_training import check_keys, check_setup
from lightning_vivit.callbacks.due import is_due
from lightning_vivit.callbacks.failures import stop, stop_messages, tell
from lightning_vivit.callbacks.measurement import Measurement
from lightning_vivit.callbacks.options import MonitorOptions, Options, lists_options
from lightning_vivit.callbacks.session import Session
from lightning_vivit.callbacks.state import pack, unpack
from lightning_vivit.callbacks.step import look
from lightning_vivit.loggers import set_callback_metrics
from lightning_vivit.parallel import Ranks, Replica


class Monitor(Measurement, Callback):
    """Base of the monitors: evaluates at the parameters before a step, and never changes the run.

    Values go to every logger of the Trainer at exactly the scheduled steps, and to
    `trainer.callback_metrics`, where the last value stays for ModelCheckpoint and EarlyStopping.

    Steps are those on the x axis of the loggers: batches after which the optimizers stepped. One
    batch counts once with LBFGS and in manual optimization; with accumulate_grad_batches=n, n
    batches count once.

    Args:
        k: How many leading eigenvalues or directions to look at.
        **options: Those of all monitors, see `MonitorOptions`.

    Raises:
        OptionError: If an option has an impossible value or contradicts another one.
        UnknownOptionError: There is no option of this name; it says the nearest.
    """

    @lists_options
    def __init__(self, k: int = 10, **options: Unpack[Options]) -> None:
        super().__init__(MonitorOptions(k=k, **options))
        self.session = Session([self])
        self._state_key: str | None = None  # during a run

    @property
    def state_key(self) -> str:
        """One key per set of options, so that several instances keep their states apart.

        During a run it is that of its start: the Trainer asks for it around every hook.
        """
        return self._state_key or self._generate_state_key(**self.options())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what can be checked before training, and join the other monitors."""
        if stage != "fit":
            return
        self._state_key = None
        self._state_key = self.state_key
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [each for each in callbacks if isinstance(each, Monitor)] or [self]
        first = monitors[0] is self
        check_setup(self, trainer, pl_module, first)
        self.start_over()
        if first:
            check_keys(monitors)
            session = Session(monitors, Ranks.of(trainer), Replica.of(trainer))
            for monitor in monitors:
                monitor.session = session
        self.session.check_room(self, trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the memory again: `configure_model` may have built layers."""
        self.session.check_room(self, trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, bring back a resumed run's last values."""
        self.session.pacer.start()
        set_callback_metrics(trainer, self.run_state.values)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compute if the step is due; free what was shared after the last monitor.

        Steps that are not due pay for little more than the question.
        """
        state, session = self.run_state, self.session
        try:
            if state.failure is None and is_due(self, session, trainer, batch_idx):
                with session.pacer.timed():
                    look(self, session, trainer, pl_module, batch, batch_idx)
        except Exception as error:
            self._stop(error)
        finally:
            state.looked_at = None
        if session.last is self and session.pacer.counting:
            self._end_step(trainer)

    def _end_step(self, trainer: Trainer) -> None:
        """All monitors of the step have computed."""
        session = self.session
        try:
            cost = session.pacer.end_step()
            if cost is not None and self.run_state.failure is None:
                session.publish_cost(trainer, cost)
        except Exception as error:
            self._stop(error)
        try:
            session.lay_out_once(trainer)
        finally:
            session.end_step()

    def _stop(self, error: Exception) -> None:
        error = self.session.ranks.spread(error)
        told, self.session.reported = self.session.reported is error, error
        stop(self, error, told)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first validation batch, in case no probe can be drawn from the loader."""
        if self.source.wants_validation and dataloader_idx == 0:
            try:
                self.source.see_validation(batch)
            except Exception as error:  # told at the next monitored step, to all ranks
                self.run_state.late = error

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say again who stopped: the warning lies far above, between the progress bars."""
        if self.session.last is self:
            for message in stop_messages(self.session.monitors):
                rank_zero_info(message)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Free what was shared."""
        self.session.end_step()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free what was shared."""
        self.session.end_step()
        self._state_key = None

    def state_dict(self) -> dict[str, Any]:
        """Position, last values, probe and references; see `lightning_vivit.callbacks.state`."""
        if not self.settings.save_state:
            return {}
        try:
            return pack(self.run_state, self.references(), self.source.state_dict())
        except Exception as error:
            tell(self, "a checkpoint goes without the state of this monitor.", error)
            return {}

    # Lightning refuses two callbacks with one state key, without a word on what to do, if they
    # override `state_dict`. As a wrapper this one does not count, and `setup` says prefix=.
    state_dict.__wrapped__ = Callback.state_dict  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was taken; without it, if it does not fit."""
        try:
            self.run_state, references = unpack(state_dict)
            self.source.load_state_dict(state_dict)
            self.set_references(references)
        except Exception as error:
            self.start_over()
            tell(self, "the state in the checkpoint does not fit and is left out.", error)
