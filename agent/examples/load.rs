fn main() {
    let multi = std::env::args().nth(1).as_deref() != Some("perf");
    match cadscope::kernel::Kernel::load(false, multi) {
        Ok(k) => {
            println!("{:?}", k.mode());
        }
        Err(e) => println!("{e}"),
    }
}
