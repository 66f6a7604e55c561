"""HTTP resources: one file each, its structs above the controller that uses them."""
