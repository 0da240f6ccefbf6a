"""Episodes: the environment answers the model's turns, and the engine samples the turns."""
