import pytest

from megatron_spell.config.hardware import TABLE, HardwareError, load_hardware


def test_the_packages_own_table_names_three():
    table = load_hardware()
    assert set(table) == {"a100", "h100", "h200"}
    assert table["h100"].nvlink_gb_per_s == 450


def test_a_users_copy_takes_its_place(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(TABLE.read_text().replace("h100:", "ours:"))
    assert set(load_hardware(own)) == {"a100", "ours", "h200"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no hardware"),
        ("- 1", "holds no hardware"),
        ("a: [", "not readable as YAML"),
        ("a: {nvlink_gb_per_s: 1, infiniband_gb_per_s: 1, hbm_copy_gb_per_s: 1}", "a.message_latency_us"),
        (TABLE.read_text().replace("nvlink_gb_per_s: 300", "nvlink_gb_per_s: 0"), "a100.nvlink_gb_per_s = 0"),
        (TABLE.read_text().replace("nvlink_gb", "nvlnk_gb"), "a100.nvl"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_in_one_line(tmp_path, text, said):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(HardwareError) as error:
        load_hardware(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_table_is_told(tmp_path):
    with pytest.raises(HardwareError, match="no such file; copy"):
        load_hardware(tmp_path / "none.yaml")
