"""Complete runs by name: `recipe=NAME` on the command line picks NAME.yaml."""
