//! Turns the values of one layout into the program that the kernel runs, and the place of each value in the record.
//!
//! An argument is gone when a function ends, so a value that the leave edge reads through an argument gets a hidden word
//! that keeps it from the entry. A chain longer than one fetch is cut in two by a hidden word in the same way.
//!
//! Refuses more fetches, words or text than a record has room for.

use cadscope_common::probe::{
    Fetch, MAX_FETCHES, MAX_STEPS, ProbeProgram, TEXT_BLOCK, TEXT_BYTES, WORDS, base, edge, kind,
};

use super::Place;
use super::expression::{Address, Base, Expression, Kind};

/// The program of a layout, and where it leaves each value.
pub(super) type Compiled = (ProbeProgram, Vec<(String, Place)>);

/// How a function is told where to put its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ResultPlace {
    /// By the first argument, if it returns by value at all: x86-64. It returns the place, too.
    #[default]
    Argument,
    /// By a register of its own: a function of arm64 that returns by value. Its layout is written for x86-64.
    Register,
}

impl ResultPlace {
    /// On this machine.
    pub(super) const fn here(by_value: bool) -> Self {
        if by_value && cfg!(target_arch = "aarch64") { Self::Register } else { Self::Argument }
    }
}

/// Compiles the values read at entry and at the end.
///
/// # Errors
/// What does not fit.
pub(super) fn compile(
    enter: &[(String, Expression)],
    leave: &[(String, Expression)],
    result: ResultPlace,
) -> Result<Compiled, String> {
    let mut compiler = Compiler { result, ..Compiler::default() };
    for (at, values) in [(edge::ENTER, enter), (edge::LEAVE, leave)] {
        for (name, expression) in values {
            compiler.value(at, name, expression).map_err(|problem| format!("value `{name}`: {problem}"))?;
        }
    }
    compiler.finish()
}

/// A chain of reads: what [`Fetch`] has, without its limit of steps.
struct Chain {
    base: u8,
    loads: Vec<i32>,
    last: i32,
}

/// A value whose fetch index is not final: leave fetches come after all enter fetches.
struct Named {
    name: String,
    edge: u8,
    index: usize,
    class: bool,
}

/// A word that no name asked for.
struct Hidden {
    edge: u8,
    base: u8,
    reads: Vec<i32>,
    word: u8,
}

#[derive(Default)]
struct Compiler {
    result: ResultPlace,
    enter: Vec<Fetch>,
    leave: Vec<Fetch>,
    named: Vec<Named>,
    words: u8,
    blocks: u8,
    hidden: Vec<Hidden>,
}

impl Compiler {
    fn value(&mut self, at: u8, name: &str, expression: &Expression) -> Result<(), String> {
        let mut fetch = match expression {
            Expression::Register(value_kind, register) => {
                Fetch { base: self.base(at, *register)?, kind: kernel_kind(*value_kind), ..Fetch::default() }
            }
            Expression::Memory(value_kind, address, _) => {
                let mut chain = self.chain(at, &text_address(*value_kind, address))?;
                self.shorten(at, &mut chain)?;
                chain.loads.push(chain.last);
                fetch_of(chain.base, kernel_kind(*value_kind), &chain.loads)?
            }
        };
        fetch.edge = at;
        let class = match expression {
            Expression::Memory(value_kind, _, bytes) if value_kind.is_text() => {
                let blocks =
                    u8::try_from(bytes.div_ceil(TEXT_BLOCK)).map_err(|_| "is too long".to_owned())?;
                fetch.place = self.blocks;
                fetch.blocks = blocks;
                self.blocks = self.blocks.saturating_add(blocks);
                if usize::from(self.blocks) * TEXT_BLOCK > TEXT_BYTES {
                    return Err(format!(
                        "all texts of a layout have {TEXT_BYTES} bytes, each in steps of {TEXT_BLOCK}; give one a smaller size: `text[…]:64`"
                    ));
                }
                *value_kind == Kind::Class
            }
            _ => {
                fetch.place = self.word()?;
                false
            }
        };
        let index = self.push(fetch)?;
        self.named.push(Named { name: name.to_owned(), edge: at, index, class });
        Ok(())
    }

    fn word(&mut self) -> Result<u8, String> {
        let word = self.words;
        if usize::from(word) >= WORDS {
            return Err(format!("a layout has {WORDS} numbers, hidden ones included; remove one"));
        }
        self.words += 1;
        Ok(word)
    }

    fn push(&mut self, fetch: Fetch) -> Result<usize, String> {
        if self.enter.len() + self.leave.len() >= MAX_FETCHES {
            return Err(format!("a layout has {MAX_FETCHES} reads, hidden ones included; remove one"));
        }
        let list = if fetch.edge == edge::ENTER { &mut self.enter } else { &mut self.leave };
        list.push(fetch);
        Ok(list.len() - 1)
    }

    /// The base as this edge can read it.
    fn base(&mut self, at: u8, register: Base) -> Result<u8, String> {
        let own = self.result == ResultPlace::Register;
        let number = match register {
            Base::Argument(n) if !own => base::ARG0 + n,
            Base::Argument(n) => n.checked_sub(1).map_or(base::RESULT_PLACE, |n| base::ARG0 + n),
            Base::Return if at == edge::ENTER => {
                return Err(
                    "`ret` does not exist yet at entry; move the value to [probe.layout.leave]".to_owned()
                );
            }
            Base::Return if own => base::RESULT_PLACE,
            Base::Return => return Ok(base::RETURN),
        };
        if at == edge::ENTER { Ok(number) } else { self.hidden_word(edge::ENTER, number, &[]) }
    }

    fn hidden_word(&mut self, at: u8, from: u8, reads: &[i32]) -> Result<u8, String> {
        let known = self.hidden.iter().find(|h| h.edge == at && h.base == from && h.reads == reads);
        if let Some(hidden) = known {
            return Ok(base::WORD0 + hidden.word);
        }
        let word = self.word()?;
        let mut fetch = fetch_of(from, kind::U64, reads)?;
        fetch.edge = at;
        fetch.place = word;
        self.push(fetch)?;
        self.hidden.push(Hidden { edge: at, base: from, reads: reads.to_vec(), word });
        Ok(base::WORD0 + word)
    }

    fn chain(&mut self, at: u8, address: &Address) -> Result<Chain, String> {
        Ok(match address {
            Address::Base(register) => Chain { base: self.base(at, *register)?, loads: Vec::new(), last: 0 },
            Address::Load(inner) => {
                let mut chain = self.chain(at, inner)?;
                chain.loads.push(chain.last);
                chain.last = 0;
                chain
            }
            Address::Offset(inner, offset) => {
                let mut chain = self.chain(at, inner)?;
                chain.last = chain.last.checked_add(*offset).ok_or("offsets add up to more than 2^31")?;
                chain
            }
        })
    }

    /// Puts the first reads of a chain that is too long for one fetch into a hidden word.
    fn shorten(&mut self, at: u8, chain: &mut Chain) -> Result<(), String> {
        while chain.loads.len() >= MAX_STEPS {
            let rest = chain.loads.split_off(MAX_STEPS);
            let first = std::mem::replace(&mut chain.loads, rest);
            chain.base = self.hidden_word(at, chain.base, &first)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Compiled, String> {
        let mut program = ProbeProgram::default();
        let all = self.enter.iter().chain(&self.leave);
        for (slot, fetch) in program.fetches.iter_mut().zip(all.clone()) {
            *slot = *fetch;
        }
        let too_many = |_| "has too many reads".to_owned();
        program.fetch_count = u32::try_from(all.clone().count()).map_err(too_many)?;
        let mut values = Vec::new();
        for named in self.named {
            let index = if named.edge == edge::ENTER { named.index } else { self.enter.len() + named.index };
            let Some(fetch) = all.clone().nth(index) else { continue };
            let fetch_index = u8::try_from(index).map_err(too_many)?;
            let place = if fetch.kind == kind::TEXT {
                Place::Text {
                    block: fetch.place,
                    blocks: fetch.blocks,
                    fetch: fetch_index,
                    class: named.class,
                }
            } else {
                Place::Word { index: fetch.place, fetch: fetch_index }
            };
            values.push((named.name, place));
        }
        Ok((program, values))
    }
}

fn fetch_of(from: u8, value_kind: u8, reads: &[i32]) -> Result<Fetch, String> {
    let steps = u8::try_from(reads.len()).ok().filter(|&steps| usize::from(steps) <= MAX_STEPS);
    let steps = steps.ok_or_else(|| format!("a read has at most {MAX_STEPS} steps"))?;
    let mut fetch = Fetch { base: from, kind: value_kind, steps, ..Fetch::default() };
    for (slot, offset) in fetch.offsets.iter_mut().zip(reads) {
        *slot = *offset;
    }
    Ok(fetch)
}

const fn kernel_kind(value_kind: Kind) -> u8 {
    match value_kind {
        Kind::U8 => kind::U8,
        Kind::U16 => kind::U16,
        Kind::U32 => kind::U32,
        Kind::I32 => kind::I32,
        Kind::U64 => kind::U64,
        Kind::Text | Kind::String | Kind::Class => kind::TEXT,
    }
}

/// Where the characters of a value are, or the address itself for numbers.
fn text_address(value_kind: Kind, address: &Address) -> Address {
    let load = |inner| Address::Load(Box::new(inner));
    let offset = |inner, bytes| Address::Offset(Box::new(inner), bytes);
    match value_kind {
        // libstdc++: the first member of a std::string points to its characters.
        Kind::String => load(address.clone()),
        // Itanium C++ ABI: the object begins with its vtable pointer; the type_info pointer is stored 8 bytes before the
        // vtable's address point; the type's name is type_info's second member.
        Kind::Class => load(offset(load(offset(load(address.clone()), -8)), 8)),
        _ => address.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::expression::parse;
    use super::*;

    /// Memory in which every address holds something, the same each time.
    fn byte_at(addr: u64) -> u8 {
        let mixed = (addr ^ (addr >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.to_le_bytes()[5]
    }

    fn word_at(addr: u64, bytes: u64) -> u64 {
        (0..bytes).fold(0, |word, n| word | u64::from(byte_at(addr.wrapping_add(n))) << (8 * n))
    }

    fn text_at(addr: u64, room: usize) -> Vec<u8> {
        (0..room as u64 - 1).map(|n| byte_at(addr.wrapping_add(n))).take_while(|&b| b != 0).collect()
    }

    /// The lower half, sign-extended.
    fn extended(word: u64) -> u64 {
        ((word << 32).cast_signed() >> 32).cast_unsigned()
    }

    #[derive(Debug, PartialEq)]
    enum Read {
        Number(u64),
        Text(Vec<u8>),
    }

    fn cut(value_kind: Kind, word: u64) -> u64 {
        match value_kind {
            Kind::U8 => word & 0xff,
            Kind::U16 => word & 0xffff,
            Kind::U32 => word & 0xffff_ffff,
            Kind::I32 => extended(word),
            _ => word,
        }
    }

    /// What the grammar says, evaluated on the tree.
    fn meaning(expression: &Expression, registers: &[u64; 7]) -> Read {
        fn register(base: Base, registers: &[u64; 7]) -> u64 {
            match base {
                Base::Argument(n) => registers[usize::from(n)],
                Base::Return => registers[6],
            }
        }
        fn address(tree: &Address, registers: &[u64; 7]) -> u64 {
            match tree {
                Address::Base(base) => register(*base, registers),
                Address::Load(inner) => word_at(address(inner, registers), 8),
                Address::Offset(inner, n) => address(inner, registers).wrapping_add_signed(i64::from(*n)),
            }
        }
        match expression {
            Expression::Register(value_kind, base) => {
                Read::Number(cut(*value_kind, register(*base, registers)))
            }
            Expression::Memory(value_kind, tree, bytes) => {
                let at = address(tree, registers);
                let room = bytes.div_ceil(TEXT_BLOCK) * TEXT_BLOCK;
                match value_kind {
                    Kind::Text => Read::Text(text_at(at, room)),
                    Kind::String => Read::Text(text_at(word_at(at, 8), room)),
                    Kind::Class => {
                        let vtable = word_at(at, 8);
                        let type_info = word_at(vtable.wrapping_sub(8), 8);
                        Read::Text(text_at(word_at(type_info.wrapping_add(8), 8), room))
                    }
                    integer => Read::Number(cut(*integer, word_at(at, 8))),
                }
            }
        }
    }

    /// What common/src/probe.rs says, in the order in which the kernel runs it.
    fn run(program: &ProbeProgram, registers: &[u64; 7]) -> (Vec<u64>, BTreeMap<u8, Vec<u8>>) {
        let mut words = vec![0; WORDS];
        let mut texts = BTreeMap::new();
        for at in [edge::ENTER, edge::LEAVE] {
            for fetch in program.fetches.iter().take(program.fetch_count as usize).filter(|f| f.edge == at) {
                let mut p = match fetch.base {
                    base::RETURN => {
                        assert_eq!(at, edge::LEAVE);
                        registers[6]
                    }
                    n @ 0..=5 => {
                        assert_eq!(at, edge::ENTER, "an argument is gone at the end");
                        registers[usize::from(n)]
                    }
                    n => words[usize::from(n - base::WORD0)],
                };
                let steps = usize::from(fetch.steps);
                if steps > 0 {
                    for offset in &fetch.offsets[..steps - 1] {
                        p = word_at(p.wrapping_add_signed(i64::from(*offset)), 8);
                    }
                    p = p.wrapping_add_signed(i64::from(fetch.offsets[steps - 1]));
                }
                let value = |bytes| if steps == 0 { p } else { word_at(p, bytes) };
                match fetch.kind {
                    kind::TEXT => {
                        texts.insert(fetch.place, text_at(p, usize::from(fetch.blocks) * TEXT_BLOCK));
                    }
                    kind::I32 => {
                        words[usize::from(fetch.place)] = extended(value(4));
                    }
                    kind::U32 => words[usize::from(fetch.place)] = value(4) & 0xffff_ffff,
                    kind::U16 => words[usize::from(fetch.place)] = value(2) & 0xffff,
                    kind::U8 => words[usize::from(fetch.place)] = value(1) & 0xff,
                    _ => words[usize::from(fetch.place)] = value(8),
                }
            }
        }
        (words, texts)
    }

    fn any_base(leave: bool) -> BoxedStrategy<Base> {
        if leave {
            prop_oneof![(0u8..6).prop_map(Base::Argument), Just(Base::Return)].boxed()
        } else {
            (0u8..6).prop_map(Base::Argument).boxed()
        }
    }

    fn any_address(leave: bool) -> impl Strategy<Value = Address> {
        any_base(leave).prop_map(Address::Base).prop_recursive(9, 9, 1, |inner| {
            prop_oneof![
                inner.clone().prop_map(|a| Address::Load(Box::new(a))),
                (inner, -0x1000i32..0x1000).prop_map(|(a, n)| Address::Offset(Box::new(a), n)),
            ]
        })
    }

    fn any_expression(leave: bool) -> impl Strategy<Value = Expression> {
        let integer =
            prop_oneof![Just(Kind::U8), Just(Kind::U16), Just(Kind::U32), Just(Kind::I32), Just(Kind::U64)];
        let any_kind = prop_oneof![
            Just(Kind::U8),
            Just(Kind::U16),
            Just(Kind::U32),
            Just(Kind::I32),
            Just(Kind::U64),
            Just(Kind::Text),
            Just(Kind::String),
            Just(Kind::Class)
        ];
        prop_oneof![
            (integer, any_base(leave)).prop_map(|(k, b)| Expression::Register(k, b)),
            (any_kind, any_address(leave), prop_oneof![Just(64usize), 65usize..=128])
                .prop_map(|(k, a, n)| Expression::Memory(k, a, if k.is_text() { n } else { 64 })),
        ]
    }

    fn written(expression: &Expression) -> String {
        fn base_text(base: Base) -> String {
            match base {
                Base::Argument(n) => format!("arg{n}"),
                Base::Return => "ret".to_owned(),
            }
        }
        fn address(tree: &Address) -> String {
            match tree {
                Address::Base(base) => base_text(*base),
                Address::Load(inner) => format!("[{}]", address(inner)),
                Address::Offset(inner, n) if *n < 0 => {
                    format!("{} - {:#x}", address(inner), n.unsigned_abs())
                }
                Address::Offset(inner, n) => format!("{} + {n}", address(inner)),
            }
        }
        let kind_text = |k: &Kind| format!("{k:?}").to_lowercase();
        match expression {
            Expression::Register(k, b) => format!("{}({})", kind_text(k), base_text(*b)),
            Expression::Memory(k, a, n) if k.is_text() => format!("{}[{}]:{n}", kind_text(k), address(a)),
            Expression::Memory(k, a, _) => format!("{}[{}]", kind_text(k), address(a)),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_parsed(expression in any_expression(true)) {
            prop_assert_eq!(parse(&written(&expression)), Ok(expression));
        }

        #[test]
        fn the_program_reads_what_the_expression_means(
            enter in prop::collection::vec(any_expression(false), 0..3),
            leave in prop::collection::vec(any_expression(true), 0..3),
            registers in any::<[u64; 7]>(),
        ) {
            let name = |list: Vec<Expression>, edge: &str| -> Vec<(String, Expression)> {
                list.into_iter().enumerate().map(|(n, e)| (format!("{edge}{n}"), e)).collect()
            };
            let (enter, leave) = (name(enter, "enter"), name(leave, "leave"));
            // What does not fit is refused, which is right too.
            let Ok((program, places)) = compile(&enter, &leave, ResultPlace::Argument) else { return Ok(()) };
            prop_assert_eq!(places.len(), enter.len() + leave.len());
            let edges: Vec<u8> =
                program.fetches.iter().take(program.fetch_count as usize).map(|f| f.edge).collect();
            prop_assert!(edges.is_sorted(), "enter fetches come first");
            let (words, texts) = run(&program, &registers);
            for (name, expression) in enter.iter().chain(&leave) {
                let place = places.iter().find(|(n, _)| n == name).unwrap().1;
                let read = match place {
                    Place::Word { index, fetch } => {
                        prop_assert_eq!(program.fetches[usize::from(fetch)].place, index);
                        Read::Number(words[usize::from(index)])
                    }
                    Place::Text { block, .. } => Read::Text(texts[&block].clone()),
                };
                prop_assert_eq!(read, meaning(expression, &registers), "{}", written(expression));
            }
        }
    }

    fn named(values: &[(&str, &str)]) -> Vec<(String, Expression)> {
        values.iter().map(|(name, text)| ((*name).to_owned(), parse(text).unwrap())).collect()
    }

    #[test]
    fn an_argument_needed_at_the_end_is_kept_once() {
        let (program, places) = compile(
            &named(&[("kind", "i32[this + 0x100]")]),
            &named(&[("done", "u8[this + 8]"), ("x", "u8[this + 9]")]),
            ResultPlace::Argument,
        )
        .unwrap();
        assert_eq!(program.fetch_count, 4);
        assert_eq!(program.fetches[1], Fetch { edge: edge::ENTER, place: 1, ..Fetch::default() });
        assert_eq!(program.fetches[2].base, base::WORD0 + 1);
        assert_eq!(places[1], ("done".to_owned(), Place::Word { index: 2, fetch: 2 }));
    }

    #[test]
    fn a_chain_too_long_for_one_read_is_cut_in_two() {
        let (program, _) =
            compile(&named(&[("class", "class[[[[this + 0xb70] + 8] - 8]]")]), &[], ResultPlace::Argument)
                .unwrap();
        assert_eq!(program.fetch_count, 2);
        assert_eq!(program.fetches[0].offsets, [0xb70, 8, -8, 0, -8, 8]);
        let last = Fetch { kind: kind::TEXT, base: base::WORD0, steps: 1, blocks: 1, ..Fetch::default() };
        assert_eq!(program.fetches[1], last);
    }

    #[test]
    fn a_result_by_value_has_a_register_of_its_own_on_arm64() {
        let (enter, leave) =
            (named(&[("this", "u64(arg1)")]), named(&[("none", "u64[ret]"), ("size", "u32[arg0 + 8]")]));
        let (program, _) = compile(&enter, &leave, ResultPlace::Register).unwrap();
        let bases: Vec<u8> = program.fetches.iter().take(4).map(|fetch| fetch.base).collect();
        assert_eq!(bases, [base::ARG0, base::RESULT_PLACE, base::WORD0 + 1, base::WORD0 + 1]);
        let (program, _) = compile(&enter, &leave, ResultPlace::Argument).unwrap();
        let bases: Vec<u8> = program.fetches.iter().take(4).map(|fetch| fetch.base).collect();
        assert_eq!(bases, [base::ARG0 + 1, base::ARG0, base::RETURN, base::WORD0 + 2]);
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let many: Vec<_> = (0..9).map(|n| (format!("v{n}"), parse("u8[this]").unwrap())).collect();
        let compile = |enter: &[_]| compile(enter, &[], ResultPlace::Argument);
        assert!(compile(&many).unwrap_err().contains("8 numbers"));
        let texts = named(&[("a", "text[this]:200"), ("b", "text[arg1]")]);
        assert!(compile(&texts).unwrap_err().contains("256 bytes"));
        assert!(compile(&named(&[("r", "u8(ret)")])).unwrap_err().contains("layout.leave"));
    }
}
