import logging
from pathlib import Path

import pyautoattack.autoattack as pyautoattack


class Logger:
    """The original's: everything is printed, also warnings, also when `verbose` is False."""

    def __init__(self, log_path):
        self.log_path = log_path

    def log(self, text):
        print(text)
        if self.log_path is not None:
            with Path(self.log_path).open("a", encoding="utf-8") as file:
                file.write(text + "\n")


class Reporter:
    """What pyautoattack's code takes for a logger; it hands all messages to the `log` of the original's logger."""

    def __init__(self, logger):
        self.debug = self.info = logger.log
        self.warning = lambda text: logger.log(f"Warning: {text}")


class Reporting:
    """As in the original, `logger` may be set to any object with a method `log` of one text."""

    @property
    def logger(self):
        return Reporter(self._logger)

    @logger.setter
    def logger(self, logger):
        foreign = logger is None or isinstance(logger, logging.Logger | Reporter)
        self._logger = Logger(None) if foreign else logger


class APGDAttack(Reporting, pyautoattack.APGDAttack):
    pass


class APGDAttackTargeted(Reporting, pyautoattack.APGDAttack_targeted):
    pass


class AutoAttack(Reporting, pyautoattack.AutoAttack):
    def __init__(
        self,
        model,
        norm="Linf",
        eps=0.3,
        seed=None,
        verbose=True,
        attacks_to_run=[],  # noqa: B006 -- as in the original
        version="standard",
        is_tf_model=False,
        device="cuda",
        log_path=None,
    ):
        if version in ["standard", "plus", "rand"] and attacks_to_run != []:
            raise ValueError("attacks_to_run will be overridden unless you use version='custom'")
        attacks = attacks_to_run if version == "custom" else None
        super().__init__(model, attacks=attacks, device=device, eps=eps, norm=norm, seed=seed, version=version)
        self.apgd.__class__, self.apgd_targeted.__class__ = APGDAttack, APGDAttackTargeted
        self.logger = self.apgd.logger = self.apgd_targeted.logger = Logger(log_path)
        self.verbose, self.is_tf_model = verbose, is_tf_model
        if version in ["standard", "plus", "rand"]:
            self.set_version(version)

    def _set_version(self, version):
        """pyautoattack's constructor calls it, before `verbose` is known."""

    def set_version(self, version="standard"):
        if self.verbose:
            print(f"setting parameters for {version} version")
        verbose, self.verbose = self.verbose, False
        super()._set_version(version)
        self.verbose = verbose

    def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False, state_path=None):
        x_adv, y_adv = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state_path)
        return (x_adv, y_adv) if return_labels else x_adv

    def clean_accuracy(self, x_orig, y_orig, bs=250):
        verbose, self.verbose = self.verbose, False
        accuracy = super().clean_accuracy(x_orig, y_orig, bs=bs)
        self.verbose = verbose
        if verbose:
            print(f"clean accuracy: {accuracy:.2%}")
        return accuracy
