"""Landing: the one way into the warehouse. Contract, quarantine, and rows and position committed together."""
