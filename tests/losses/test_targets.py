"""What a teacher leaves behind, decoded by hand."""

import torch

from mkd_fast import Int8Hidden, PackedSampledTeacher


def test_an_entry_is_three_bytes_of_id_and_count():
    entries = torch.tensor(
        [
            [5, 0, 4],  # id 5, count 1: 4 * 2^16 = 2^18
            [0xFF, 0xFF, 0xFF],  # the largest id, 2^18 - 1, and the largest count, 63
            [0x31, 0xD4, 0x0B],  # id 3 * 2^16 + 0xD431, count 2
            [9, 0, 0],  # count 0: an empty slot, whatever its id
        ],
        dtype=torch.uint8,
    )
    teacher = PackedSampledTeacher(entries, num_draws=50).unpacked()
    assert teacher.ids.tolist() == [5, 262_143, 3 * 65_536 + 0xD431, -1]
    assert torch.equal(teacher.weights, torch.tensor([1, 63, 2, 0]) / 50)
    assert (teacher.ids.dtype, teacher.weights.dtype) == (torch.int32, torch.float32)


def test_id_bits_move_the_border_between_id_and_count():
    packed = (37 << 6 | 45).to_bytes(3, "little")
    entries = torch.tensor([[list(packed)]], dtype=torch.uint8)
    teacher = PackedSampledTeacher(entries, num_draws=100, id_bits=6).unpacked()
    assert teacher.ids.tolist() == [[45]]
    assert torch.equal(teacher.weights, torch.tensor([[0.37]]))


def test_int8_states_are_values_times_their_row_s_scale():
    states = Int8Hidden(
        torch.tensor([[1, -127], [4, 0]], dtype=torch.int8), torch.tensor([0.5, 0.25])
    )
    assert torch.equal(states.dequantised(), torch.tensor([[0.5, -63.5], [1.0, 0.0]]))
