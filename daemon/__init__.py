"""The service: configuration, command line, scheduler, the cycle and its phases, gate, metrics, publication."""
