"""All that the author of a method reads."""

from ssl_zoo.core.batch import Batch
from ssl_zoo.core.encoder import Encoder, MomentumEncoder, encode_views, predictor_for
from ssl_zoo.core.method import Family, Method, merge_outputs, network_paths, set_apart
from ssl_zoo.core.observer import Observer
from ssl_zoo.core.token_encoder import TokenEncoder
