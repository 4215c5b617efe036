"""Messages of the services between containerd and its shims, generated from the .proto files beside them."""
