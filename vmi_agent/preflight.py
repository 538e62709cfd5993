"""What is checked before `vmi-agent serve` touches its state directory.

A CA that is made on a first start lasts for years, and its root goes out to others: it is not made by a start that
then fails for another reason. So whatever can be known of the configuration is looked at first: what it names is there,
opens and can be written. Nothing is made or changed here.
"""

import errno
import os
from pathlib import Path

from runtime import channel_credentials
from runtime.descriptions import has_tls
from runtime.errors import StartError
from runtime.files import FileRefused
from vmi_agent.ca import authority
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.config import Config
from vmi_agent.keys import CustodyError, open


def check(config: Config) -> None:
    """Check what the configuration names, and that a CA may be made where there is none.

    The anchor file is checked for a first start alone: later on its medium may be away for a while, which keeps nobody
    from being served, and the running agent warns and tries again. The same holds for syslog at any start.

    Raises:
        StartError: something is missing, or may not be used; nothing was made or changed.
    """
    _check_state_dir(config.state_dir)
    if any(has_tls(each) for each in config.listen):
        try:
            channel_credentials.channel_context(config.state_dir / channel_credentials.FILE_NAME)
        except FileRefused as error:
            raise StartError(str(error)) from error
    if config.ephemeral_ca:
        refuse_ephemeral(config)
    if authority.exists(config.state_dir):
        return
    if not config.ephemeral_ca:
        ca_lifecycle.refuse_while_requested(config.state_dir)
        try:
            open.check_can_make(config.access, config.key_type)
        except CustodyError as error:
            raise StartError(str(error)) from error
    if config.anchor_to.file is not None:
        _check_anchor_file(config.anchor_to.file)


def _check_state_dir(path: Path) -> None:
    """Check that the state directory is there, or can be made."""
    there = next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
    if not there.is_dir():
        raise StartError(f"state directory {path}: {there} is not a directory")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise StartError(f"state directory {path}: {there}: {os.strerror(errno.EROFS)}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StartError(f"state directory {path}: {there} cannot be written by uid {os.geteuid()}")


def refuse_ephemeral(config: Config) -> None:
    """Refuse to make an ephemeral CA in the place of a lasting one.

    Raises:
        StartError: with the two ways out.
    """
    path = config.state_dir
    if not authority.exists(path):
        return
    if not ca_store.is_ephemeral(ca_store.directory_of(path, ca_store.newest(path))):
        raise StartError(
            f"{path} holds a lasting CA, which --ephemeral-ca would replace for good. Leave the option out, or give"
            " another state directory."
        )


def _check_anchor_file(path: Path) -> None:
    if path.is_dir():
        raise StartError(f"--anchor-file {path} is a directory. Give a file.")
    if not path.parent.is_dir():
        raise StartError(f"--anchor-file {path}: there is no directory {path.parent}. Make it.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise StartError(f"--anchor-file {path} cannot be written by uid {os.geteuid()}")
