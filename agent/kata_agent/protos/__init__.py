"""Messages of the agent protocol, generated from the .proto files beside them (`make protos`)."""
