#![cfg_attr(fuzzing, no_main)]

buttress_fuzz::target!(retry_after);
