from .private_ddp import PrivateDDP as PrivateDDP
