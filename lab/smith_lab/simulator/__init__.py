"""FulcrumCore, simulated: the pieces behind `smith_lab.fulcrum_simulator`, from the clock up to the socket."""
