"""Episodes: the environment, which answers the model's turns, and the engine, which samples the turns."""
