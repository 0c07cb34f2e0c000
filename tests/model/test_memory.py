import platform
import resource

import pytest
import torch

from llama2_pl.model.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_large_tensor_in_the_place_of_a_freed_one_faults_no_pages():
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(2**26, dtype=torch.uint8).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = 2**26 // resource.getpagesize()
    keep_freed_memory()
    assert min(faults() for _ in range(4)) < pages / 16  # the first ones make the heap larger
