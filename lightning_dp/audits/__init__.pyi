from .canary_data import CanaryData as CanaryData
from .judged import judge as judge
from .membership import attack_losses as attack_losses
from .releases import Releases as Releases
from .white_box import Scores as Scores, Setting as Setting, attack as attack
