"""Jobs as pods: KubeDL's kinds and ours, watched, placed by our scheduler, and carried out on a Kubernetes cluster.

`operator` puts it together; `cluster` is the seam the controller knows; `client` alone imports the Kubernetes library.
Everything that turns one document into another (`documents`, `pods`, `records`, `status`, `nodes`, `gangs`) is pure.
"""
