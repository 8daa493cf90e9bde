//! vramfit for Python: the extension module `vramfit._vramfit`, over the library `vramfit`. The package beside it has
//! the names, the exceptions and the type stubs.

mod error;
mod gpus;
mod host;
mod model;
mod placement;

use pyo3::prelude::*;

#[pymodule]
fn _vramfit(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("ENGINE", vramfit::ENGINE.name)?;
    module.add_class::<model::Model>()?;
    module.add_class::<gpus::Gpu>()?;
    module.add_class::<gpus::Gpus>()?;
    module.add_class::<placement::Term>()?;
    module.add_class::<placement::Device>()?;
    module.add_class::<placement::Placement>()?;
    module.add_class::<host::Host>()?;
    module.add_class::<host::Reserved>()?;
    module.add_function(wrap_pyfunction!(model::open, module)?)?;
    module.add_function(wrap_pyfunction!(placement::plan, module)?)?;
    module.add_function(wrap_pyfunction!(placement::settings_schema, module)?)?;
    Ok(())
}
