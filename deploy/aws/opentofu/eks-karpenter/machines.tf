# The role of machines that Karpenter starts: to join the cluster, to have addresses, to pull images.

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
  name               = "${var.cluster_name}-${var.region}-dask-machine"
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

resource "aws_eks_access_entry" "machine" {
  cluster_name  = var.cluster_name
  principal_arn = aws_iam_role.machine.arn
  type          = "EC2_LINUX"
}
