"""What the tests share: processes, peers, clients, judges, faults."""
