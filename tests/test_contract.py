"""The names and arguments that other people's code imports."""

import importlib
import inspect

import pytest

# What follows "*" is keyword-only.
SIGNATURES = {
    "sam_free.trajectory_loss": "logits past_logits * temperature tau_squared",
    "sam_free.saf": "apply_fn base_loss * num_classes lag_epochs start_epoch weight temperature "
    "tau_squared buffer_dtype ring stale",
    "sam_free.mesa": "apply_fn base_loss * decay start_epoch weight temperature tau_squared",
    "sam_free.sam_gradient": "loss_fn * rho adaptive eta group_size",
    "sam_free.gsam_gradient": "loss_fn * rho",
    "sam_free.looksam_gradient": "loss_fn * rho",
    "sam_free.esam_gradient": "loss_fn * rho",
    "sam_free.sharpness.top_eigenvalues": "loss_fn params batches * k which num_iters key",
    "sam_free.sharpness.trace": "loss_fn params batches * num_samples key",
    "sam_free.sharpness.spectral_density": "loss_fn params batches",
    "sam_free.sharpness.sam_sharpness": "loss_fn params batches * rho group_size",
    "sam_free.sharpness.average_sharpness": "loss_fn params batches * sigma adaptive",
    "sam_free.sharpness.worst_case_sharpness": "loss_fn params batches",
    "sam_free.sharpness.loss_slice": "loss_fn params batches",
    "lion_lyapunov.lion_k": "learning_rate kappa * b1 b2 weight_decay mask mu_dtype",
    "lion_lyapunov.scale_by_lion_k": "kappa * b1 b2 mu_dtype",
    "lion_lyapunov.analysis.fenchel_gap": "kappa params grads weight_decay",
    "lion_lyapunov.analysis.violation": "kappa params weight_decay",
    "scaling_laws.learning_rate_areas": "learning_rates * decay",
    "scaling_laws.fit": "law data * loss delta key",
    "scaling_laws.bootstrap": "result num_samples * key",
    "scaling_laws.compute_optimal": "result flops",
    "scaling_laws.optimize_schedule": "result",
    "scaling_laws.curves.read": "path",
    "in_context.softmax_regression.loss": "A x b * weights",
    "in_context.softmax_regression.gradient": "A x b * weights",
    "in_context.softmax_regression.hessian": "A x b * weights",
    "in_context.softmax_regression.hvp": "A x b v * weights",
    "in_context.softmax_regression.newton": "A b * weights",
    "in_context.weight_shift.shift_x": "A x dx b",
    "in_context.weight_shift.shift_a": "A x dA b",
    "in_context.linear_attention.optimal": "n * covariance prior noise",
    "in_context.softmax_attention.apply_heads": "omega mu prompt",
}

NAMES = [
    *(f"lion_lyapunov.{name}" for name in ("lion", "signum", "muon", "scion", "normalized_sgd")),
    *(
        f"lion_lyapunov.kappas.{name}"
        for name in (
            "l1", "lp", "linf", "l2", "top_k", "trimmed_l1", "huber", "relativistic", "log_cosh",
            "arctan", "half_squared_l2", "power", "group_l2", "log_sum_exp", "positive_part",
            "from_lmo", "nuclear", "operator_norm", "frobenius", "schatten", "ky_fan", "spectral",
            "row_l2", "col_l2", "scaled", "moreau",
        )
    ),
    *(
        f"lion_lyapunov.analysis.{name}"
        for name in ("objective", "lyapunov", "decrements", "discrete_lyapunov", "phase", "probe")
    ),
    "lion_lyapunov.flow.solve", "lion_lyapunov.convert", "lion_lyapunov.distributed",
    *(
        f"ntk.{name}"
        for name in (
            "stax", "predict", "batch", "monte_carlo_kernel_fn", "empirical_kernel_fn",
            "empirical_ntk_fn", "empirical_nngp_fn", "empirical_ntk_vp_fn", "linearize",
            "taylor_expand", "Kernel", "NtkImplementation", "from_flax", "scale_mixture",
            "operators", "dynamics",
        )
    ),
    *(
        f"ntk.predict.{name}"
        for name in (
            "gradient_descent_mse", "gradient_descent", "gp_inference",
            "gradient_descent_mse_ensemble", "max_learning_rate",
        )
    ),
    *(
        f"ntk.stax.{name}"
        for name in (
            "serial", "parallel", "repeat", "Dense", "Conv", "ConvTranspose", "ConvLocal",
            "AvgPool", "SumPool", "GlobalAvgPool", "GlobalSumPool", "Flatten", "LayerNorm",
            "GlobalSelfAttention", "Dropout", "ImageResize", "Index", "Slice", "DotGeneral",
            "Aggregate", "Identity", "FanOut", "FanInSum", "FanInProd", "FanInConcat", "Relu",
            "LeakyRelu", "ABRelu", "Abs", "Sign", "RectifiedMonomial", "Erf", "Sigmoid_like",
            "Gelu", "Sin", "Cos", "Rbf", "Gaussian", "Exp", "ExpNormalized", "Gabor", "Hermite",
            "Monomial", "Polynomial", "Elementwise", "ElementwiseNumerical",
        )
    ),
    *(
        f"scaling_laws.laws.{name}"
        for name in ("LRAnnealing", "MultiPower", "Chinchilla", "PowerLaw", "EncoderDecoder")
    ),
    "scaling_laws.compare",
    "in_context.softmax_regression.certify_convex",
    "in_context.softmax_attention.debiased_gradient_descent",
    "in_context.softmax_attention.decompose",
    "in_context.predictors", "in_context.tasks",
    *(
        f"shared.{name}"
        for name in (
            "devices", "data", "train", "evaluate", "checkpoint", "metrics", "models", "plotting",
        )
    ),
]  # fmt: skip


def find(name: str):
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:depth]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_exists_and_says_what_it_is(name):
    assert find(name).__doc__


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_public_function_takes_the_promised_arguments(name):
    parameters = inspect.signature(find(name)).parameters
    positional, _, keywords = SIGNATURES[name].partition("*")
    assert list(parameters)[: len(positional.split())] == positional.split()
    for argument in keywords.split():
        assert parameters[argument].kind is inspect.Parameter.KEYWORD_ONLY, argument
    assert find(name).__doc__


def test_sharpness_is_reached_by_plain_import():
    import sam_free

    assert sam_free.sharpness.top_eigenvalues.__doc__
