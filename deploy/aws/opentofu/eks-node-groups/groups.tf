# The scheduler's machine, on demand, and the workers': spot, and a few on demand for results. Labels and taints are those of ../../values-eks-node-groups.yaml.

locals {
  # Those that cluster-autoscaler scales, and no other: by EKS's tags it would take all of the cluster's.
  groups = merge(
    {
      scheduler         = aws_eks_node_group.scheduler
      workers-on-demand = aws_eks_node_group.workers_on_demand
    },
    { for subnet, group in aws_eks_node_group.workers : "workers-${subnet}" => group },
  )
}

data "aws_iam_policy_document" "machine_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "machine" {
  name               = "${var.cluster_name}-${var.region}-dask-nodes"
  assume_role_policy = data.aws_iam_policy_document.machine_trust.json
}

resource "aws_iam_role_policy_attachment" "machine" {
  for_each = toset([
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonSSMManagedInstanceCore",
  ])

  role       = aws_iam_role.machine.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}

resource "aws_launch_template" "machine" {
  name                   = "${var.cluster_name}-dask"
  vpc_security_group_ids = coalescelist(var.security_group_ids, [data.aws_eks_cluster.this.vpc_config[0].cluster_security_group_id])

  # Clients run code of theirs in workers. With 1 it cannot get the machine's credentials (worker_policy_arns are the workers'
  # own); 2 would let it, and let workers read the spot notice themselves.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = 64
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])

    content {
      resource_type = tag_specifications.value
      tags          = { "dask-tide/cluster" = var.cluster_name }
    }
  }
}

resource "aws_eks_node_group" "scheduler" {
  cluster_name         = var.cluster_name
  node_group_name      = "dask-scheduler"
  node_role_arn        = aws_iam_role.machine.arn
  subnet_ids           = [var.scheduler_subnet_id]
  capacity_type        = "ON_DEMAND"
  instance_types       = var.scheduler_types
  labels               = { "dask-tide/role" = "scheduler" }
  force_update_version = false

  taint {
    key    = "dask-tide/role"
    value  = "scheduler"
    effect = "NO_SCHEDULE"
  }

  launch_template {
    id      = aws_launch_template.machine.id
    version = aws_launch_template.machine.latest_version
  }

  scaling_config {
    min_size     = 0
    max_size     = 1
    desired_size = 0
  }

  # A busy scheduler's disruption budget makes an update fail rather than end the work in hand.
  update_config {
    max_unavailable = 1
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.machine]
}

resource "aws_eks_node_group" "workers" {
  for_each = toset(var.worker_subnet_ids)

  cluster_name         = var.cluster_name
  node_group_name      = "dask-workers-${each.value}"
  node_role_arn        = aws_iam_role.machine.arn
  subnet_ids           = [each.value]
  capacity_type        = "SPOT"
  instance_types       = var.worker_types
  labels               = { "dask-tide/role" = "worker" }
  force_update_version = false

  taint {
    key    = "dask-tide/role"
    value  = "worker"
    effect = "NO_SCHEDULE"
  }

  launch_template {
    id      = aws_launch_template.machine.id
    version = aws_launch_template.machine.latest_version
  }

  scaling_config {
    min_size     = 0
    max_size     = var.worker_maximum
    desired_size = 0
  }

  update_config {
    max_unavailable_percentage = 33
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.machine]
}

# Where results stay, and what works on when there are no spot machines; in the scheduler's zone.
resource "aws_eks_node_group" "workers_on_demand" {
  cluster_name         = var.cluster_name
  node_group_name      = "dask-workers-on-demand"
  node_role_arn        = aws_iam_role.machine.arn
  subnet_ids           = [var.scheduler_subnet_id]
  capacity_type        = "ON_DEMAND"
  instance_types       = var.worker_types
  labels               = { "dask-tide/role" = "worker-on-demand" }
  force_update_version = false

  taint {
    key    = "dask-tide/role"
    value  = "worker-on-demand"
    effect = "NO_SCHEDULE"
  }

  launch_template {
    id      = aws_launch_template.machine.id
    version = aws_launch_template.machine.latest_version
  }

  scaling_config {
    min_size     = 0
    max_size     = var.worker_on_demand_maximum
    desired_size = 0
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.machine]
}

# From nothing cluster-autoscaler knows a machine by its tags. EKS tells it labels and taints by DescribeNodegroup, but not
# how much disk there is.
resource "aws_autoscaling_group_tag" "disk" {
  for_each = local.groups

  autoscaling_group_name = each.value.resources[0].autoscaling_groups[0].name

  tag {
    key                 = "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage"
    value               = "48Gi"
    propagate_at_launch = false
  }
}
