"""The listeners of a configuration, and opening them."""

from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorCore, IStreamServerEndpoint
from twisted.logger import Logger

from bmc_proxy.config import Config
from runtime.descriptions import is_local, without_tls
from runtime.endpoints import listen, server_endpoint

_log = Logger()


class Listeners:
    """Where a proxy listens, by option: "https", "http".

    Raises:
        ConfigError: an endpoint is not one.
    """

    def __init__(self, reactor: IReactorCore, config: Config) -> None:
        self._config = config
        self._descriptions = {
            option: description
            for option, description in (("https", config.https_at), ("http", config.http))
            if description is not None
        }
        self._endpoints: dict[str, IStreamServerEndpoint] = {
            option: server_endpoint(reactor, f"--{option}", description)
            for option, description in self._descriptions.items()
        }

    @property
    def options(self) -> list[str]:
        """Those that there are."""
        return list(self._descriptions)

    async def open(self, option: str, factory: IProtocolFactory) -> IListeningPort:
        """Listen. Raises StartError."""
        description = self._descriptions[option]
        is_anonymous = is_anonymous_at(self._config, option)
        if is_anonymous:
            _log.warn("whoever reaches the plain listener may have CSRs signed without login", http=description)
        elif option == "http" and not is_local(description):
            _log.warn("passwords and tokens cross the network in the clear on the plain listener", http=description)
        return await listen(self._endpoints[option], factory, without_tls(description), locally=is_anonymous)


def is_anonymous_at(config: Config, option: str) -> bool:
    """Return whether a listener answers without login."""
    return option == "http" and config.anonymous_loopback
