"""The agents that the proxy asks: connections, choice, retries and the queue in front of them."""
