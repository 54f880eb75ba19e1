from .dataset import (
    BINARIFICATIONS as BINARIFICATIONS,
    DataCycler as DataCycler,
    Dataset as Dataset,
    DatasetParameters as DatasetParameters,
    binarify as binarify,
    cached as cached,
    chosen_pair as chosen_pair,
    chosen_rows as chosen_rows,
)
from .code import CodeValidationParameters as CodeValidationParameters
