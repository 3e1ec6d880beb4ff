"""FulcrumCore, simulated: the pieces behind `executor.lab.fulcrum_simulator`, from the clock up to the socket."""
