"""Every sub-command: name to where it is defined and what it does. A command's module is imported when it is run.

A new command is one line here and one ``click`` command made by ``scenarium.core.cli.base.command``.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One row of the table."""

    target: str
    """``module:attribute`` of the click command."""
    en: str
    zh: str


COMMANDS: dict[str, Entry] = {
    "list": Entry("scenarium.core.cli.listing:list_command", "the installed scenarios and their health", "已安装的场景及其状态"),
    "show": Entry("scenarium.core.cli.listing:show", "one scenario: settings, versions, request and answer", "查看一个场景：设置、版本、请求与回答"),
    "doctor": Entry("scenarium.core.cli.doctor:doctor", "examine the installation and say what to repair", "检查安装并说明如何修复"),
    "data": Entry("scenarium.core.cli.data:data", "look at data before a run; verify what a version was trained on", "训练前检查数据；核对版本所用的数据"),
    "train": Entry("scenarium.core.cli.train:train", "train a scenario and store a version", "训练场景并保存版本"),
    "import": Entry("scenarium.core.cli.importing:import_command", "serve a model that exists already (ONNX, PyTorch, …)", "导入已有的模型（ONNX 等）"),
    "evaluate": Entry("scenarium.core.cli.train:evaluate", "measure a version on held-out rows or on your own file", "用留出数据或自己的文件评估版本"),
    "predict": Entry("scenarium.core.cli.predict:predict", "answer requests without a server", "不启动服务直接预测"),
    "versions": Entry("scenarium.core.cli.versions:versions", "the stored versions and their aliases", "已保存的版本及其别名"),
    "promote": Entry("scenarium.core.cli.versions:promote", "make a version production, unless it is worse", "将版本设为生产版本（更差则拒绝）"),
    "optimize": Entry("scenarium.core.cli.optimize:optimize", "a faster version: other engines, bf16, int8", "更快的版本：其他引擎、bf16、int8"),
    "rollback": Entry("scenarium.core.cli.versions:rollback", "return to the production version before", "回退到上一个生产版本"),
    "rollout": Entry("scenarium.gateway.rollout_cli:rollout", "try a version beside production: canary, shadow", "让新版本与生产版本并行试用：canary、镜像"),
    "export": Entry("scenarium.core.cli.versions:export", "copy a version as an entry of a Triton repository", "将版本导出为 Triton 模型仓库的条目"),
    "prune": Entry("scenarium.core.cli.versions:prune", "delete old versions that nothing refers to", "删除无引用的旧版本"),
    "snippet": Entry("scenarium.gateway.snippet_cli:snippet", "client code to paste: curl, Python, JavaScript", "可粘贴的客户端代码：curl、Python、JavaScript"),
    "serve": Entry("scenarium.gateway.cli:serve", "start the gateway", "启动网关"),
    "triton": Entry("scenarium.core.cli.triton:triton", "run NVIDIA's Triton over the store's models", "在存储的模型上运行 NVIDIA Triton"),
    "keys": Entry("scenarium.gateway.access_cli:keys", "make, list and revoke API keys", "创建、列出和撤销 API 密钥"),
    "audit": Entry("scenarium.gateway.access_cli:audit", "check the audit log", "检查审计日志"),
    "status": Entry("scenarium.gateway.operator_cli:status", "a running gateway: workers, latency, faults", "查看运行中的网关：worker、延迟、故障"),
    "logs": Entry("scenarium.gateway.operator_cli:logs", "what a scenario's workers printed", "查看某场景 worker 的输出"),
    "reload": Entry("scenarium.gateway.operator_cli:reload", "let a running gateway read the settings again", "让运行中的网关重新读取设置"),
    "containerize": Entry("scenarium.gateway.container_cli:containerize", "write a Dockerfile and Kubernetes manifests", "生成 Dockerfile 与 Kubernetes 清单"),
    "env": Entry("scenarium.core.cli.env:env", "make and list the environments that some scenarios need", "创建和列出部分场景所需的独立环境"),
    "config": Entry("scenarium.core.cli.config:config", "explain every setting and where its value comes from", "说明每个设置及其来源"),
    "new": Entry("scenarium.core.cli.kit:new", "write a plugin of your own from a template", "由模板生成您自己的插件"),
    "check": Entry("scenarium.core.cli.kit:check", "check a plugin against the hooks' contract", "按钩子的约定检查插件"),
    "dev": Entry("scenarium.gateway.cli:dev", "serve a plugin while you write it", "边写边运行插件"),
    "completion": Entry("scenarium.core.cli.completion:completion", "the shell's completion script", "输出命令行补全脚本"),
}
