from megatron_spell.types.seeds import stream_seed


def test_every_part_of_the_key_counts():
    seeds = {stream_seed(1, 2, "ask"), stream_seed(1, 3, "ask"), stream_seed(2, 2, "ask"), stream_seed(1, 2, "blind")}
    assert len(seeds) == 4
    assert stream_seed(1, 23) != stream_seed(12, 3)


def test_a_seed_is_the_same_in_every_process_and_fits_a_signed_word():
    assert stream_seed(0, 7, "answer") == 7794646525284162950
    assert all(0 <= stream_seed(i) < 2**63 for i in range(200))
