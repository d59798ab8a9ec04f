"""The Megatron side (floor 3): the policy that is trained, one process per rank of the mesh."""
