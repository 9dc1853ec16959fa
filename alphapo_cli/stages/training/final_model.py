"""The trained model on disk: tried before the first step, verified before it counts as saved.

What can fail at the end of a training (settings that cannot be saved, tied weights, the disk) is found out at its
beginning, by saving the start model; the room that it took is held until the trained one needs it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.tokenise import end_token_id
from alphapo_cli.errors import AlphapoError, UsageError, first_line, refusal
from alphapo_cli.modeling.deferred import is_deferred
from alphapo_cli.modeling.policy import PolicyModel, bare, policy_of
from alphapo_cli.modeling.quantisation import NONE, quantisation_of
from alphapo_cli.modeling.saving import read_back, repair_generation, save_model
from alphapo_cli.modeling.saving_shards import save_sharded, try_saving_settings
from alphapo_cli.modeling.training_config import Setting, as_loaded, drop_router_loss, set_dropout
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.heartbeat import at_work
from alphapo_cli.stages.training.inputs import ModelAndData
from alphapo_cli.storage.atomic import UNBEGUN
from alphapo_cli.storage.owned_directory import owned_directory
from alphapo_cli.storage.run_lock import LockLost, RunLock

TRIAL, RESERVE = (f"{UNBEGUN[-1]}{name}" for name in ("trial", "reserve"))
_SLACK = 1 << 20  # bytes beside the model, for the files that say how the run ended
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # by a file system that cannot hold room
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PAIRS = 2  # pairs whose log-probs under the model read back are compared
# Times the bound on rounding: merging rounds every weight once more, and weights of wide spread exceed the bound.
_TOLERANCE = 4.0


@dataclass
class FinalModel:
    """Saves the model of one run."""

    cfg: TrainConfig
    directory: RunDirectory
    start: ModelAndData
    log: Callable[[str], None]
    # Settings of the model's configuration that `prepare` changed, as they were.
    loaded: dict[Setting, Any] = field(default_factory=dict, init=False)
    one: int = field(default=0, init=False)  # bytes of a model, as `reserve` was told

    def prepare(self, lm: Any) -> None:
        """Switch off what an exact step cannot have, and repair what transformers would refuse to save; say so."""
        if self.cfg.model.dropout is not None:
            self.loaded |= set_dropout(lm, self.cfg.model.dropout)
        router = drop_router_loss(lm)
        if router:
            self.log(
                "note: the balancing loss of this mixture of experts (output_router_logits) is not used: it is no sum over "
                "pairs, so that it would depend on how a step is split"
            )
        self.loaded |= router
        left_out = repair_generation(lm)
        if left_out:
            self.log(f"note: the model's generation settings contradict one another; left out: {', '.join(left_out)}")

    def try_saving(self, policy: PolicyModel) -> int:
        """Save the start model and remove it again; of one whose weights are in files, all but those.

        Returns:
            Bytes that it takes.

        Raises:
            UsageError: it cannot be saved.
        """
        trial = self.directory.path / TRIAL
        try:
            trial.mkdir(parents=True, exist_ok=True)
            weights = 0
            if is_deferred(policy.lm):
                with as_loaded(bare(policy.lm), self.loaded):
                    weights = try_saving_settings(policy.lm, self.start.tokenizer, trial, end_id=self._end_id)
            else:
                self._save(policy, trial)
            return weights + sum(file.stat().st_size for file in trial.rglob("*") if file.is_file())
        except Exception as error:
            if isinstance(error, OSError) or refusal(error) is not None:  # safetensors has errors of its own for a disk
                why = refusal(error) or first_line(error)
                raise UsageError(f"{self.directory.path}: the model cannot be saved there ({why})") from error
            raise UsageError(
                f"{self.start.start}: this model cannot be saved, so there is no use in training it ({first_line(error)})"
            ) from error
        finally:
            shutil.rmtree(trial, ignore_errors=True)

    def reserve(self, one: int, models: int = 1) -> None:
        """Hold room on the disk for what is going to be saved; where the system cannot, see that it is free now.

        Args:
            one: bytes of a model.
            models: how many will be saved.

        Raises:
            UsageError: the disk has no such room.
        """
        self.one = one
        size = one * models
        file, needed = self.directory.path / RESERVE, size + _SLACK
        try:
            with open(file, "wb") as held:
                os.posix_fallocate(held.fileno(), 0, needed)
            return
        except AttributeError:  # macOS has no such call
            refused = None
        except OSError as error:
            refused = error
        file.unlink(missing_ok=True)
        free = shutil.disk_usage(self.directory.path).free
        cannot_hold = refused is None or refused.errno in _NOT_SUPPORTED
        if cannot_hold and free >= needed:
            return
        why = os.strerror(errno.ENOSPC) if refused is None or cannot_hold else refused.strerror
        raise UsageError(
            f"{self.directory.path}: no room for the trained model ({size / 2**20:,.0f} MiB needed, {free / 2**20:,.0f} MiB "
            f"free; {why}); make room, or choose another run.dir"
        ) from refused

    def give_back_one(self) -> None:
        """Give the room of one model back, which is about to be saved."""
        file = self.directory.path / RESERVE
        with contextlib.suppress(FileNotFoundError):
            os.truncate(file, max(0, file.stat().st_size - self.one))

    def release(self) -> None:
        """Give the reserved room back."""
        (self.directory.path / RESERVE).unlink(missing_ok=True)

    def with_room(self, write: Callable[[], None]) -> str | None:
        """Write a file of the run; on a full disk into the reserved room, which is given back.

        Returns:
            The system's word for a disk that was full, None where it was not.

        Raises:
            OSError: there is no reserved room, or it does not suffice.
        """
        try:
            write()
        except OSError as error:
            if error.errno not in _FULL or not (self.directory.path / RESERVE).is_file():
                raise
            self.release()
            write()
            return os.strerror(error.errno)
        return None

    def save(self, policy: PolicyModel, lock: RunLock, target: Path | None = None) -> None:
        """Save the policy as it is now, once it has been read back and found to be the one that is in memory.

        Args:
            policy: the model.
            lock: the run lock.
            target: the folder, of a step before the last; None: model/, which takes the reserved room.

        Raises:
            LockLost: another process has taken over the run.
            AlphapoError: what was read back is another model.
            Exception: it cannot be saved.
        """
        at_work("saving the model")
        if target is None:
            self.release()
        with owned_directory(target or self.directory.model, lock) as folder:
            saved = self._save(policy, folder)
            device = policy.device
            read = read_back(saved, folder, device)
            if read.lm is not None:
                self._compare_log_probs(policy, read.lm)
        kind = quantisation_of(policy.lm)
        if self.cfg.model.merge and kind != NONE:
            dtype = str(bare(policy.lm).dtype).removeprefix("torch.")
            self.log(
                f"{(target or self.directory.model).name}/ holds whole weights in {dtype}: the base dequantised from {kind}, the adapter added"
            )
        if read.note is not None:
            self.log(f"note: the saved model's tensors are those that were trained; {read.note}")

    def save_together(
        self, policy: PolicyModel, lock: RunLock | None, processes: Processes, target: Path | None = None
    ) -> None:
        """Save a sharded model, once its files have been read back. Collective.

        Args:
            policy: the model.
            lock: the run lock in rank 0, which writes; None in the other processes.
            processes: those that share the model.
            target: as in `save`.

        Raises:
            LockLost: another process has taken over the run.
            Agreed: rank 0 cannot save it, in every process.
        """
        at_work("saving the model")
        assert policy.sharded is not None
        blank = policy.sharded[1].lm
        with contextlib.ExitStack() as stack:
            folder, fault = None, None
            if lock is not None:
                if target is None:
                    self.release()
                try:
                    folder = stack.enter_context(owned_directory(target or self.directory.model, lock))
                except Exception as error:
                    fault = error
            with as_loaded(bare(blank), self.loaded):
                fault = save_sharded(policy.lm, blank, self.start.tokenizer, folder, end_id=self._end_id) or fault
            processes.agree(fault, LockLost)
        self.log(
            "note: the saved model's tensors are those that were trained; no process has all of it to compare log-probs"
        )

    @property
    def _end_id(self) -> int:
        return end_token_id(self.start.tokenizer, self.cfg.data)

    def _save(self, policy: PolicyModel, folder: Path) -> Any:
        with as_loaded(bare(policy.lm), self.loaded):
            return save_model(policy.lm, self.start.tokenizer, folder, end_id=self._end_id, merge=self.cfg.model.merge)

    def _compare_log_probs(self, policy: PolicyModel, lm: Any) -> None:
        """Compare the log-probs of a few pairs under the trained policy and under the model read back."""
        data = self.start.data
        pairs = data.probe if len(data.probe) else data.train
        pairs = pairs.select(np.arange(min(_PAIRS, len(pairs))))
        other = policy_of(lm, self.cfg)
        ours, theirs = (
            score_pairs(p, pairs, batch_size=_PAIRS, pad_id=self.start.pad_id, processes=Processes())
            for p in (policy, other)
        )
        lengths = np.stack([side.lengths for side in pairs.answers[:2]])
        size = np.maximum(1, np.abs(ours) / np.maximum(lengths, 1))
        bound = _TOLERANCE * max(policy.token_rounding, other.token_rounding) * size * np.sqrt(lengths)
        apart = np.abs(ours - theirs)
        if (apart > bound).any():
            raise AlphapoError(
                "the model read back gives other log-probs than the one that was trained (an answer's differ by up to "
                f"{apart.max():.3g} nats; rounding explains {bound.max():.1g})"
            )
